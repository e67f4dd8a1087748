//! Retrying with a visible reason: transient failures are tried again with growing, jittered pauses, permanent ones
//! give up at once. Which is which the failing code says, not its message.

use std::time::{Duration, Instant};

/// How an attempt failed.
#[derive(Debug)]
pub enum Failure {
    /// May go away by itself (connection refused, no quorum yet).
    Again(anyhow::Error),
    /// Will not (a refused certificate, a wrong cluster).
    GiveUp(anyhow::Error),
}

/// Any error is transient unless the code says otherwise.
impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Again(error.into())
    }
}

/// Pauses between attempts.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// First pause.
    pub first: Duration,
    /// Longest pause.
    pub cap: Duration,
    /// Give up this long after the first attempt; `None`: never.
    pub deadline: Option<Duration>,
}

impl Policy {
    /// For things expected within seconds: 50 ms growing to 500 ms, for ever.
    pub const PROMPT: Self = Self { first: Duration::from_millis(50), cap: Duration::from_millis(500), deadline: None };

    /// The same with a deadline.
    pub const fn within(self, deadline: Duration) -> Self {
        Self { deadline: Some(deadline), ..self }
    }

    fn pause(&self, attempt: u32) -> Duration {
        let grown = self.first.saturating_mul(1 << attempt.min(16)).min(self.cap);
        // A quarter of jitter, from the clock: three nodes started together must not stay in step.
        let jitter = f64::from(clock_nanos() % 250) / 1000.0;
        grown.mul_f64(0.875 + jitter)
    }
}

fn clock_nanos() -> u32 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.subsec_nanos())
}

/// Runs `attempt` until it succeeds; `waiting` hears why it has not yet and since when, before each pause.
pub async fn retry<T>(
    policy: Policy,
    mut waiting: impl FnMut(&anyhow::Error, Duration),
    mut attempt: impl AsyncFnMut() -> Result<T, Failure>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    let mut count = 0;
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(Failure::GiveUp(error)) => return Err(error),
            Err(Failure::Again(error)) => {
                let elapsed = start.elapsed();
                if policy.deadline.is_some_and(|deadline| elapsed >= deadline) {
                    return Err(error.context(format!("gave up after {} s", elapsed.as_secs())));
                }
                waiting(&error, elapsed);
                tokio::time::sleep(policy.pause(count)).await;
                count += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn transient_is_retried_and_permanent_is_not() {
        let mut attempts = 0;
        let mut heard = 0;
        let policy = Policy { first: Duration::from_millis(1), cap: Duration::from_millis(2), deadline: None };
        let result = block_on(retry(
            policy,
            |_, _| heard += 1,
            async || {
                attempts += 1;
                match attempts {
                    3 => Err::<(), _>(Failure::GiveUp(anyhow::anyhow!("wrong cluster"))),
                    _ => Err(anyhow::anyhow!("connection refused").into()),
                }
            },
        ));
        assert_eq!(result.unwrap_err().to_string(), "wrong cluster");
        assert_eq!((attempts, heard), (3, 2));
    }

    #[test]
    fn pauses_grow_to_the_cap() {
        let policy = Policy::PROMPT;
        assert!(policy.pause(0) < Duration::from_millis(60));
        assert!(policy.pause(60) <= Duration::from_millis(563));
    }
}
