//! Waiting for conditions with a deadline.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::LabError;

/// Asks `condition` every 10 ms until it holds; an error, naming `what`, if it doesn't within the time.
pub fn wait_until(
    what: &str,
    within: Duration,
    mut condition: impl FnMut() -> bool,
) -> Result<(), LabError> {
    let deadline = Instant::now() + within;
    loop {
        if condition() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(LabError::Deadline {
                what: what.to_owned(),
                within,
            });
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// An error that names `what`, if the condition does not hold.
pub fn holds(what: &str, condition: bool) -> Result<(), LabError> {
    if condition {
        return Ok(());
    }
    Err(LabError::Io {
        what: what.to_owned(),
        source: std::io::Error::other("does not hold"),
    })
}
