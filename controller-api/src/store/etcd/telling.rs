//! What a controller tells the others: one value, which vanishes with the controller.

use super::Etcd;
use super::api::TxnRequest;
use super::keys::{delete, end_of, found, put_under, read};
use super::wire::{Joiner, cut, number};
use crate::store::StoreError;

/// Seconds that a value stays whose controller is not heard of.
const LEASE_SECONDS: i64 = 10;

/// What a controller has told.
#[derive(Debug)]
pub struct Told {
    /// What is told, as the keys name it.
    subject: &'static str,
    /// A random name for this process.
    name: String,
    /// The keys of the others when they were read last: how many, and the sum of their revisions.
    read: Option<(usize, i64)>,
    lease: Option<i64>,
    value: Vec<u8>,
    count: u64,
}

impl Told {
    /// Nothing told yet of a subject.
    pub fn of(subject: &'static str) -> Self {
        Self {
            subject,
            read: None,
            name: format!("{:016x}", rand::random::<u64>()),
            lease: None,
            value: Vec::new(),
            count: 0,
        }
    }
}

impl Told {
    /// What the others tell counts as changed.
    pub fn read_again(&mut self) {
        self.read = None;
    }
}

impl Etcd {
    /// Tells a value to all controllers, in place of the one before.
    ///
    /// # Errors
    /// etcd does not answer.
    pub fn tell(&self, told: &mut Told, value: &[u8]) -> Result<(), StoreError> {
        if let Some(lease) = told.lease {
            let kept = self
                .client
                .handle()
                .block_on(self.client.keep_alive(lease))?;
            if !kept {
                *told = Told {
                    name: std::mem::take(&mut told.name),
                    read: told.read,
                    ..Told::of(told.subject)
                };
            }
        }
        if told.value == value {
            return Ok(());
        }
        let lease = match told.lease {
            Some(lease) => lease,
            None => *told.lease.insert(self.client.grant(LEASE_SECONDS)?),
        };
        told.count += 1;
        let parts = cut(told.count, value);
        let name = |at: usize| {
            self.keys
                .named(&format!("{}/{}/{at:06}", told.subject, told.name))
        };
        let beyond = delete(
            name(parts.len()),
            end_of(&self.keys.named(&format!("{}/{}/", told.subject, told.name))),
        );
        let mut writes: Vec<_> = parts
            .into_iter()
            .enumerate()
            .map(|(at, part)| vec![put_under(name(at), part, lease)])
            .collect();
        writes.push(vec![beyond]);
        for success in writes {
            self.client.txn(&TxnRequest {
                success,
                ..TxnRequest::default()
            })?;
        }
        told.value = value.to_vec();
        Ok(())
    }

    /// Takes back what was told.
    pub fn tell_no_more(&self, told: &Told) {
        if let Some(lease) = told.lease {
            // It ends by itself otherwise.
            let _ = self.client.revoke(lease);
        }
    }

    /// The same, if any of it has changed since it was asked last; else nothing.
    ///
    /// # Errors
    /// etcd does not answer.
    pub fn heard_anew(&self, own: &mut Told) -> Result<Option<Vec<Vec<u8>>>, StoreError> {
        let begin = self.keys.named(&format!("{}/", own.subject));
        let answer = self.client.txn(&TxnRequest {
            success: vec![read(super::api::RangeRequest {
                range_end: end_of(&begin),
                key: begin,
                keys_only: true,
                ..Default::default()
            })],
            ..TxnRequest::default()
        })?;
        let pairs = found(answer).next().unwrap_or_default().kvs;
        let revisions = pairs.iter().map(|pair| pair.mod_revision);
        let read = (pairs.len(), revisions.fold(0, i64::wrapping_add));
        if own.read == Some(read) {
            return Ok(None);
        }
        let heard = self.heard(own)?;
        own.read = Some(read);
        Ok(Some(heard))
    }

    /// What the other controllers tell. What one is telling at this moment is left out.
    ///
    /// # Errors
    /// etcd does not answer.
    pub fn heard(&self, own: &Told) -> Result<Vec<Vec<u8>>, StoreError> {
        let begin = self.keys.named(&format!("{}/", own.subject));
        let skip = begin.len();
        let answer = self.client.txn(&TxnRequest {
            success: vec![read(super::api::RangeRequest {
                range_end: end_of(&begin),
                key: begin,
                ..Default::default()
            })],
            ..TxnRequest::default()
        })?;
        let pairs = found(answer).next().unwrap_or_default().kvs;
        let mut values = Vec::new();
        let mut joiner = Joiner::default();
        for pair in pairs {
            let mut name = pair.key[skip..].splitn(2, |byte| *byte == b'/');
            let (of, part) = (name.next(), name.next().and_then(number));
            let Some(part) = part.filter(|_| of != Some(own.name.as_bytes())) else {
                continue;
            };
            if let Ok(Some(value)) = joiner.take(part, &pair.value)
                && !value.is_empty()
            {
                values.push(value);
            }
        }
        Ok(values)
    }
}
