#!/bin/sh
# Take it where each run is to have tokens of its own: ChittyConnect's audit names the run, and they go with it.
# It costs a mint for each run. Where a service has more than a few an hour, let runs share one credential's (job.yaml).
# RUN_ID=4711 sh run-bound.sh    # with the namespace of the current context; a run of that id that is there already is an error
set -eu
run=${RUN_ID:?set RUN_ID to the id of this run}
name=deploy-$run

uid=$(kubectl create -o 'jsonpath={.metadata.uid}' -f - <<JOB
apiVersion: batch/v1
kind: Job
metadata:
  name: $name
spec:
  backoffLimit: 1
  activeDeadlineSeconds: 1080
  # With the Job goes the credential, with that its Secret; tokens that have an id are revoked.
  ttlSecondsAfterFinished: 60
  template:
    spec:
      restartPolicy: Never
      automountServiceAccountToken: false
      securityContext:
        runAsNonRoot: true
        runAsUser: 1001
        fsGroup: 1001
        seccompProfile:
          type: RuntimeDefault
      containers:
      - name: deploy
        image: busybox:1.36
        command: [sh, -euc, 'CLOUDFLARE_API_TOKEN="\$(cat /var/run/chitty/cloudflare_token)" ./deploy.sh']
        securityContext:
          allowPrivilegeEscalation: false
          capabilities:
            drop: [ALL]
        volumeMounts:
        - name: credentials
          mountPath: /var/run/chitty
          readOnly: true
      volumes:
      - name: credentials
        secret:
          # The Pod waits until it is there.
          secretName: $name
          defaultMode: 0440
JOB
)

kubectl create -f - <<CREDENTIAL
apiVersion: connect.chitty.cc/v1alpha1
kind: EphemeralCredential
metadata:
  name: $name
  ownerReferences:
  - apiVersion: batch/v1
    kind: Job
    name: $name
    uid: $uid
spec:
  connection: ${CONNECTION:-default}
  service: chittyid
  purpose: worker-deploy
  repo: CHITTYOS/chittyid
  # As ChittyConnect's audit will tell it.
  runId: "$run"
CREDENTIAL
