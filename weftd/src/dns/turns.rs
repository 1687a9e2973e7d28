//! Packets that wait for the service, by port: ports take turns, however many packets one of them has sent.

use std::collections::{HashMap, VecDeque};

/// Packets of one port that may wait.
pub(super) const OF_PORT: usize = 128;

/// Queues of ports. Whoever puts bounds their number together.
#[derive(Debug)]
pub(super) struct Turns<T> {
    /// By port; none is empty.
    waiting: HashMap<u16, VecDeque<T>>,
    /// Ports with something that waits, each once, the next one first.
    order: VecDeque<u16>,
    len: usize,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self {
            waiting: HashMap::new(),
            order: VecDeque::new(),
            len: 0,
        }
    }
}

impl<T> Turns<T> {
    /// All that waits.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Lets something of a port wait; gives it back if as much of the port does already as may.
    pub(super) fn put(&mut self, port: u16, item: T) -> Result<(), T> {
        let queue = self.waiting.entry(port).or_default();
        if queue.len() >= OF_PORT {
            return Err(item);
        }
        if queue.is_empty() {
            self.order.push_back(port);
        }
        queue.push_back(item);
        self.len += 1;
        Ok(())
    }

    /// What has waited longest of the port whose turn it is.
    pub(super) fn next(&mut self) -> Option<(u16, T)> {
        let port = self.order.pop_front()?;
        let queue = self.waiting.get_mut(&port)?;
        let item = queue.pop_front()?;
        self.len -= 1;
        if queue.is_empty() {
            self.waiting.remove(&port);
        } else {
            self.order.push_back(port);
        }
        Some((port, item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_take_turns_and_one_has_no_more_than_its_share() {
        let mut turns = Turns::default();
        for n in 0..OF_PORT {
            assert_eq!(turns.put(1, n), Ok(()));
        }
        assert_eq!(turns.put(1, 999), Err(999));
        assert_eq!(turns.put(2, 7), Ok(()));
        assert_eq!(turns.len(), OF_PORT + 1);
        assert_eq!(turns.next(), Some((1, 0)));
        assert_eq!(turns.next(), Some((2, 7)));
        for n in 1..OF_PORT {
            assert_eq!(turns.next(), Some((1, n)));
        }
        assert_eq!(turns.next(), None);
        assert!(turns.is_empty() && turns.waiting.is_empty() && turns.order.is_empty());
    }
}
