//! One read for all who ask for the same thing at the same time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::OnceCell;

/// How old an answer may be that somebody else asked for.
const SHARED_FOR: Duration = Duration::from_millis(500);

/// Reads that were begun lately, by what was read.
#[derive(Default)]
pub struct Shared<T>(Mutex<HashMap<String, Begun<T>>>);

struct Begun<T> {
    at: Instant,
    answer: Arc<OnceCell<T>>,
}

impl<T: Clone> Shared<T> {
    /// What `read` answers, or what it answered to somebody who asked for `key` less than half a second ago. A read
    /// that failed is repeated by the next in line.
    ///
    /// # Errors
    /// What `read` failed with.
    pub async fn get<E>(&self, key: &str, read: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let answer = {
            let mut begun = self.0.lock();
            begun.retain(|_, b| b.at.elapsed() < SHARED_FOR);
            let shared = begun.entry(key.to_owned()).or_insert_with(|| Begun {
                at: Instant::now(),
                answer: Arc::default(),
            });
            Arc::clone(&shared.answer)
        };
        answer.get_or_try_init(|| read).await.cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn those_who_ask_together_share_one_read_and_a_failure_is_nobodys_answer() {
        let reads = AtomicUsize::new(0);
        let shared: Shared<usize> = Shared::default();
        let read = |fails: bool| {
            let reads = &reads;
            async move {
                let n = reads.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                if fails { Err(()) } else { Ok(n) }
            }
        };
        assert_eq!(shared.get("a", read(true)).await, Err(()));
        let (one, two) = tokio::join!(shared.get("a", read(false)), shared.get("a", read(false)));
        assert_eq!((one, two), (Ok(1), Ok(1)));
        assert_eq!(shared.get("b", read(false)).await, Ok(2));
    }

    #[tokio::test]
    async fn an_answer_is_shared_for_half_a_second() {
        let shared: Shared<u8> = Shared::default();
        let answer = async |n| shared.get("a", async { Ok::<u8, ()>(n) }).await;
        assert_eq!(answer(1).await, Ok(1));
        tokio::time::sleep(SHARED_FOR + Duration::from_millis(20)).await;
        assert_eq!(answer(2).await, Ok(2));
    }
}
