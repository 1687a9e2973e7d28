//! Plain types that the XDP programs and the daemon share.
#![no_std]
