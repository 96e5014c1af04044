//! Tasks: where one panics, the process ends and is started anew.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};

use futures::FutureExt;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Starts tasks, and ends the process where one of them panics: half a controller looks alive and does half the work.
#[derive(Clone)]
pub struct Supervisor {
    process: CancellationToken,
    panicked: Arc<OnceLock<&'static str>>,
}

impl Supervisor {
    /// Stops what `process` stops when a task panics.
    #[must_use]
    pub fn new(process: CancellationToken) -> Self {
        Self {
            process,
            panicked: Arc::default(),
        }
    }

    /// Runs `task` until it ends or `until` fires; what is returned ends with it, and never fails.
    pub fn spawn(
        &self,
        name: &'static str,
        until: &CancellationToken,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        let (supervisor, until) = (self.clone(), until.clone());
        // Boxed: it would be in here as often as it is moved.
        let task = AssertUnwindSafe(Box::pin(task)).catch_unwind();
        tokio::spawn(async move {
            if let Some(Err(_)) = until.run_until_cancelled(task).await {
                tracing::error!(task = name, "a task ended in a panic, and so does the process");
                // The first is the one that is told of.
                let _ = supervisor.panicked.set(name);
                supervisor.process.cancel();
            }
        })
    }

    /// Runs `task` until it ends by itself, whatever becomes of the term.
    pub fn see_through(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn(name, &CancellationToken::new(), task);
    }

    /// How the process ends: in an error that names the task that panicked, if one did.
    ///
    /// # Errors
    /// Where one did.
    pub fn outcome(&self) -> anyhow::Result<()> {
        match self.panicked.get() {
            None => Ok(()),
            Some(name) => anyhow::bail!("the task \"{name}\" ended in a panic"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_ends_the_process_and_is_named() {
        let process = CancellationToken::new();
        let supervisor = Supervisor::new(process.clone());
        supervisor.spawn("one that ends", &process, async {});
        supervisor.spawn("one that panics", &process, async { panic!("on purpose") });
        process.cancelled().await;
        let error = supervisor.outcome().unwrap_err().to_string();
        assert_eq!(error, "the task \"one that panics\" ended in a panic");
    }

    #[tokio::test]
    async fn a_task_that_is_stopped_ends_nothing_else() {
        let process = CancellationToken::new();
        let (supervisor, until) = (Supervisor::new(process.clone()), CancellationToken::new());
        supervisor.spawn("a task", &until, std::future::pending());
        until.cancel();
        tokio::task::yield_now().await;
        assert!(!process.is_cancelled() && supervisor.outcome().is_ok());
    }
}
