//! Credentials that come, change and go.

use super::super::Faults;
use super::{Credential, Event, World};
use crate::api::{
    Activation, BrokerApi, EphemeralCredential, EphemeralCredentialSpec, ROTATE_ANNOTATION, Reason, Rotation,
};
use crate::core::ids::ObjectName;
use crate::core::layout::AnnotationPolicy;
use crate::core::spec::desired;
use std::collections::BTreeMap;
use std::time::Duration;

impl World {
    pub(super) fn arrive(&mut self) {
        let namespaces = i64::try_from(self.settings.namespaces).unwrap_or(1);
        // Half of them are of the first namespace, whoever that may be.
        let namespace = (self.random.below(namespaces) * self.random.below(2)).to_string();
        let number = self.credentials.len();
        let (name, uid) = (format!("c{number}"), format!("u{number}"));
        let mut object = EphemeralCredential::new(
            &name,
            EphemeralCredentialSpec {
                connection: "default".into(),
                service: "svc".into(),
                purpose: "deploy".into(),
                repo: None,
                run_id: None,
                type_: None,
                context: BTreeMap::new(),
                activation: Activation::Always,
                rotation: self.rotation(),
                secrets: Vec::new(),
                suspend: false,
                shared_with: None,
                from: None,
                consumers: None,
            },
        );
        object.metadata.namespace = Some(format!("ns{namespace}"));
        object.metadata.uid = Some(uid.clone());
        let Ok(desired) = desired(&object, Some(BrokerApi::Deploy), &AnnotationPolicy::default()) else {
            return;
        };
        let poison = (self.random.below(20) == 0).then(|| {
            *self
                .random
                .pick(&[Reason::BrokerRejected, Reason::Denied, Reason::BrokerUnavailable])
        });
        self.credentials.push(Credential {
            name: ObjectName::new(format!("ns{namespace}"), name),
            uid: uid.into(),
            object,
            desired,
            secret: None,
            wake: 0,
            poison: poison.filter(|_| self.settings.faults != Faults::Never),
            pod_waits: self.random.below(10) == 0,
            gone: false,
        });
        let edit = self.now + self.random.between(1, 40 * 3_600_000);
        self.at(edit, Event::Edit(number));
        let delete = self.now + self.random.between(3_600_000, 120 * 3_600_000);
        self.at(delete, Event::Delete(number));
        self.look(number);
    }

    pub(super) fn rotation(&mut self) -> Rotation {
        let seconds = |s: i64| kube::core::Duration::from(Duration::from_secs(s.unsigned_abs()));
        let mut rotation = Rotation::default();
        match self.random.below(6) {
            0 => rotation.max_lifetime = Some(seconds(self.random.between(1800, 3600))),
            1 => rotation.renew_before = Some(seconds(self.random.between(300, 1800))),
            _ => {}
        }
        rotation
    }

    pub(super) fn edit(&mut self, i: usize) {
        if self.credentials[i].gone {
            return;
        }
        let kind = self.random.below(4);
        let rotation = self.rotation();
        let stamp = self.now.to_string();
        let credential = &mut self.credentials[i];
        match kind {
            0 => credential.object.spec.purpose = format!("deploy-{stamp}"),
            1 => {
                let annotations = credential.object.metadata.annotations.get_or_insert_default();
                annotations.insert(ROTATE_ANNOTATION.to_owned(), stamp);
            }
            _ => credential.object.spec.rotation = rotation,
        }
        if let Ok(desired) = desired(
            &credential.object,
            Some(BrokerApi::Deploy),
            &AnnotationPolicy::default(),
        ) {
            credential.desired = desired;
        }
        self.asked_anew(i);
        let at = self.now + self.random.between(1, 40 * 3_600_000);
        self.at(at, Event::Edit(i));
        self.look(i);
    }

    pub(super) fn delete(&mut self, i: usize) {
        self.credentials[i].gone = true;
        self.credentials[i].secret = None;
        self.forget(i);
        let uid = self.credentials[i].uid.clone();
        self.commit(uid.as_str(), |j, now| {
            j.release(uid.as_str(), now, crate::api::Reason::Deleted);
        });
        self.ends(i, false);
        // Another takes its place.
        let at = self.now + self.random.below(3_600_000);
        self.at(at, Event::Arrive);
        self.wake_pass(self.now);
    }
}
