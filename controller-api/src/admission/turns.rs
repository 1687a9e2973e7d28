//! A number of turns at some work, which go around among the callers that wait: one that asks for many does not make others wait for all of them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use tokio::sync::oneshot;

use crate::caller::Account;

/// Turns at some work, so many at a time.
#[derive(Debug)]
pub(crate) struct Turns {
    most: usize,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    taken: usize,
    /// Who waits, by caller, in the order in which they came. None is empty.
    waiting: HashMap<Account, Own>,
    /// The callers among them, in the order of their turns.
    order: VecDeque<Account>,
}

/// A caller's that wait.
#[derive(Debug, Default)]
struct Own {
    waiters: VecDeque<Waiter>,
    /// When there are so many, those go that nobody waits for any more.
    purged_at: usize,
}

/// The fewest waiters among which those are looked for that nobody waits for any more.
const PURGED: usize = 64;

#[derive(Debug)]
enum Waiter {
    Task(oneshot::Sender<Turn>),
    Thread(mpsc::Sender<Turn>),
}

impl Waiter {
    /// Whether nobody waits any more. A thread always does.
    fn is_gone(&self) -> bool {
        matches!(self, Self::Task(sender) if sender.is_closed())
    }

    /// Gives it a turn, or back if nobody waits any more.
    fn give(self, turn: Turn) -> Result<(), Turn> {
        match self {
            Self::Task(sender) => sender.send(turn),
            Self::Thread(sender) => sender.send(turn).map_err(|unsent| unsent.0),
        }
    }
}

impl Queue {
    fn wait(&mut self, account: &Account, waiter: Waiter) {
        let own = self.waiting.entry(account.clone()).or_default();
        if own.waiters.is_empty() {
            self.order.push_back(account.clone());
        }
        if own.waiters.len() >= own.purged_at.max(PURGED) {
            own.waiters.retain(|waiter| !waiter.is_gone());
            // Not before there are twice as many, so that it costs little for each.
            own.purged_at = 2 * own.waiters.len();
        }
        own.waiters.push_back(waiter);
    }

    fn next(&mut self) -> Option<Waiter> {
        let account = self.order.pop_front()?;
        let own = self.waiting.get_mut(&account)?;
        let next = own.waiters.pop_front();
        if own.waiters.is_empty() {
            self.waiting.remove(&account);
        } else {
            self.order.push_back(account);
        }
        next
    }
}

impl Turns {
    /// So many at a time; at least one.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most: most.max(1),
            queue: Mutex::default(),
        })
    }

    /// Waits for a turn of a caller. One that is not waited for any more goes to the next.
    pub(crate) async fn take(self: &Arc<Self>, account: &Account) -> Turn {
        let given = {
            let mut queue = self.lock();
            if let Some(turn) = self.free(&mut queue) {
                return turn;
            }
            let (sender, given) = oneshot::channel();
            queue.wait(account, Waiter::Task(sender));
            given
        };
        // Who waits is dropped only with all of this, which is borrowed.
        given.await.unwrap_or(Turn { turns: None })
    }

    /// The same where blocking is allowed.
    pub(crate) fn take_blocking(self: &Arc<Self>, account: &Account) -> Turn {
        let given = {
            let mut queue = self.lock();
            if let Some(turn) = self.free(&mut queue) {
                return turn;
            }
            let (sender, given) = mpsc::channel();
            queue.wait(account, Waiter::Thread(sender));
            given
        };
        given.recv().unwrap_or(Turn { turns: None })
    }

    fn free(self: &Arc<Self>, queue: &mut Queue) -> Option<Turn> {
        // While any waits, all are taken.
        (queue.taken < self.most).then(|| {
            queue.taken += 1;
            Turn {
                turns: Some(Arc::clone(self)),
            }
        })
    }

    /// Gives a turn that has ended to the next who waits for one.
    fn pass_on(self: Arc<Self>) {
        let mut turn = Turn { turns: Some(self) };
        while let Some(turns) = turn.turns.take() {
            let next = {
                let mut queue = turns.lock();
                let next = queue.next();
                if next.is_none() {
                    queue.taken -= 1;
                }
                next
            };
            let Some(next) = next else { return };
            match next.give(Turn { turns: Some(turns) }) {
                Ok(()) => return,
                Err(back) => turn = back,
            }
        }
    }

    /// How many wait.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        let queue = self.lock();
        queue.waiting.values().map(|own| own.waiters.len()).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while it is held.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    /// None once it is given on.
    turns: Option<Arc<Turns>>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.turns.take() {
            turns.pass_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    fn poll<F: Future>(future: Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    fn account(name: &str) -> Account {
        Account::Tenants(name.to_owned())
    }

    #[test]
    fn one_that_waits_for_many_is_passed_by_one_that_waits_for_one() {
        let turns = Turns::new(1);
        let (ann, bob) = (account("ann"), account("bob"));
        let first = poll(pin!(turns.take(&ann))).unwrap();
        let mut flood: Vec<_> = (0..3).map(|_| Box::pin(turns.take(&ann))).collect();
        for call in &mut flood {
            assert!(poll(call.as_mut()).is_none());
        }
        let mut quiet = pin!(turns.take(&bob));
        assert!(poll(quiet.as_mut()).is_none());
        drop(first);
        let second = poll(flood[0].as_mut()).unwrap();
        assert!(poll(quiet.as_mut()).is_none(), "one at a time");
        drop(second);
        let third = poll(quiet.as_mut()).unwrap();
        assert!(poll(flood[1].as_mut()).is_none());
        drop(third);
        let fourth = poll(flood[1].as_mut()).unwrap();
        drop(fourth);
        drop(poll(flood[2].as_mut()).unwrap());
        let queue = turns.lock();
        assert!(queue.taken == 0 && queue.waiting.is_empty() && queue.order.is_empty());
    }

    #[test]
    fn a_turn_that_nobody_waits_for_any_more_goes_to_the_next() {
        let turns = Turns::new(1);
        let ann = account("ann");
        let first = poll(pin!(turns.take(&ann))).unwrap();
        let mut calls: Vec<_> = (0..4).map(|_| Box::pin(turns.take(&ann))).collect();
        for call in &mut calls {
            assert!(poll(call.as_mut()).is_none());
        }
        let mut last = calls.pop().unwrap();
        let given = calls.remove(0);
        // Two that ended before their turn, and one that was given it and did not take it.
        drop(calls);
        drop(first);
        drop(given);
        drop(poll(last.as_mut()).unwrap());
        assert_eq!(turns.lock().taken, 0);
    }

    #[test]
    fn those_that_ended_before_their_turn_do_not_gather() {
        let turns = Turns::new(1);
        let ann = account("ann");
        let first = poll(pin!(turns.take(&ann))).unwrap();
        let mut stays = Box::pin(turns.take(&ann));
        assert!(poll(stays.as_mut()).is_none());
        for _ in 0..10_000 {
            let mut call = Box::pin(turns.take(&ann));
            assert!(poll(call.as_mut()).is_none());
        }
        assert!(turns.waiting() <= PURGED, "{}", turns.waiting());
        drop(first);
        drop(poll(stays.as_mut()).unwrap());
        let queue = turns.lock();
        assert!(queue.taken == 0 && queue.waiting.is_empty() && queue.order.is_empty());
    }

    #[test]
    fn threads_and_tasks_take_turns() {
        let turns = Turns::new(2);
        let (ann, bob) = (account("ann"), account("bob"));
        let held = [turns.take_blocking(&ann), turns.take_blocking(&ann)];
        let other = Arc::clone(&turns);
        let thread = std::thread::spawn(move || drop(other.take_blocking(&bob)));
        drop(held);
        thread.join().unwrap();
        drop(poll(pin!(turns.take(&ann))).unwrap());
        assert_eq!(turns.lock().taken, 0);
    }
}
