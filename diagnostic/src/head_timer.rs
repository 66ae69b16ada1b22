//! The timer of one connection's heads: set at each request, due next to never.
//!
//! Setting and taking back a timer of the runtime for each request costs more than reading the request. So there is one,
//! which stays set for the earliest time that it was ever asked for, and looks when it is due whether a later one is meant.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt;
use parking_lot::Mutex;
use tokio::time::{Sleep, sleep};

/// Waits for one time at a time; a wait that was dropped costs nothing but a wake when it would have been due.
#[derive(Clone, Debug)]
pub(crate) struct HeadTimer(Arc<Mutex<Pin<Box<Sleep>>>>);

/// One wait.
#[derive(Debug)]
struct Wait {
    timer: HeadTimer,
    until: tokio::time::Instant,
}

impl HeadTimer {
    /// Makes the timer of a connection whose waits are `usual` long.
    pub(crate) fn new(usual: Duration) -> Self {
        Self(Arc::new(Mutex::new(Box::pin(sleep(usual)))))
    }
}

impl rt::Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn rt::Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn rt::Sleep>> {
        Box::pin(Wait {
            timer: self.clone(),
            until: deadline.into(),
        })
    }
}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut sleep = self.timer.0.lock();
        if sleep.deadline() > self.until {
            sleep.as_mut().reset(self.until);
        }
        loop {
            ready!(sleep.as_mut().poll(context));
            if sleep.deadline() >= self.until {
                return Poll::Ready(());
            }
            // An earlier wait was meant, which has ended.
            sleep.as_mut().reset(self.until);
        }
    }
}

impl rt::Sleep for Wait {}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use hyper::rt::Timer as _;

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);

    /// Polls a wait once, as a connection does that has part of a head.
    async fn look(wait: &mut Pin<Box<dyn rt::Sleep>>) -> bool {
        poll_fn(|context| Poll::Ready(wait.as_mut().poll(context).is_ready())).await
    }

    #[tokio::test]
    async fn a_later_wait_outlasts_the_earlier_one_that_set_the_timer() {
        let timer = HeadTimer::new(SHORT);
        let mut first = timer.sleep(SHORT);
        assert!(!look(&mut first).await);
        drop(first);
        let start = timer.now();
        timer.sleep(4 * SHORT).await;
        assert!(timer.now() - start >= 4 * SHORT);
    }

    #[tokio::test]
    async fn an_earlier_wait_does_not_last_as_long_as_the_timer_is_set_for() {
        let timer = HeadTimer::new(Duration::from_secs(3_600));
        timer.sleep(SHORT).await;
        // One that is over already.
        timer.sleep_until(timer.now()).await;
    }
}
