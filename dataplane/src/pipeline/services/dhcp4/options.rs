//! The fields and options of a DHCP message, and the writing of options wherever there is room.

/// Where the fields of a message lie (RFC 2131 §2).
pub(super) mod field {
    use std::ops::Range;

    pub const XID: Range<usize> = 4..8;
    pub const FLAGS: Range<usize> = 10..12;
    pub const CIADDR: Range<usize> = 12..16;
    pub const YIADDR: Range<usize> = 16..20;
    pub const SIADDR: Range<usize> = 20..24;
    pub const GIADDR: Range<usize> = 24..28;
    pub const CHADDR: Range<usize> = 28..34;
    pub const SNAME: Range<usize> = 44..108;
    pub const FILE: Range<usize> = 108..236;
    pub const COOKIE: Range<usize> = 236..240;
    /// Where options begin.
    pub const OPTIONS: usize = 240;
}

/// Codes of options.
pub(super) mod code {
    pub const PAD: u8 = 0;
    pub const MASK: u8 = 1;
    pub const HOSTNAME: u8 = 12;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE: u8 = 51;
    pub const OVERLOAD: u8 = 52;
    pub const KIND: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const WANTED: u8 = 55;
    pub const MAX_SIZE: u8 = 57;
    pub const RENEWAL: u8 = 58;
    pub const REBINDING: u8 = 59;
    pub const CLIENT: u8 = 61;
    pub const TFTP_SERVER: u8 = 66;
    pub const BOOT_FILE: u8 = 67;
    pub const RAPID_COMMIT: u8 = 80;
    pub const END: u8 = 255;
}

/// A message is at least as long as BOOTP's (RFC 1542 §2.1).
const LEAST: usize = 300;
/// Bytes that the overload option and the end take.
const TAIL: usize = 4;

/// Writes options into a message: behind the cookie as long as there is room, then into `file`, then into `sname` (RFC 2131 §4.1).
pub(super) struct Options<'a> {
    message: &'a mut [u8],
    /// Where the next option goes, and where none may go any more: behind the cookie, in `file`, in `sname`.
    places: [(usize, usize); 3],
    /// Codes that are there, bit by bit.
    given: [u64; 4],
}

impl<'a> Options<'a> {
    pub(super) fn new(message: &'a mut [u8]) -> Option<Self> {
        let end = message.len().checked_sub(TAIL)?;
        Some(Self {
            message,
            places: [
                (field::OPTIONS, end),
                (field::FILE.start, field::FILE.end - 1),
                (field::SNAME.start, field::SNAME.end - 1),
            ],
            given: [0; 4],
        })
    }

    /// Writes an option that the answer can't do without.
    pub(super) fn must(&mut self, code: u8, value: &[u8]) -> Option<()> {
        self.put(code, value).then_some(())
    }

    /// Writes an option unless it is there. False: there is no room.
    pub(super) fn put(&mut self, code: u8, value: &[u8]) -> bool {
        let (word, bit) = (usize::from(code / 64), 1u64 << (code % 64));
        if self.given[word] & bit != 0 {
            return true;
        }
        let Ok(len) = u8::try_from(value.len()) else {
            return false;
        };
        let needed = 2 + value.len();
        for (at, end) in &mut self.places {
            if *at + needed <= *end
                && let Some(place) = self.message.get_mut(*at..*at + needed)
            {
                place[..2].copy_from_slice(&[code, len]);
                place[2..].copy_from_slice(value);
                *at += needed;
                self.given[word] |= bit;
                return true;
            }
        }
        false
    }

    /// Writes the value of the option that `file` or `sname` stands for into that field, closed by a zero, unless it does not fit or the field is in
    /// use. From then on no option goes there.
    pub(super) fn mirror(&mut self, code: u8, value: &[u8]) {
        let (place, start) = match code {
            code::BOOT_FILE => (&mut self.places[1], field::FILE.start),
            code::TFTP_SERVER => (&mut self.places[2], field::SNAME.start),
            _ => return,
        };
        let (at, end) = *place;
        if at == start
            && at + value.len() <= end
            && let Some(field) = self.message.get_mut(at..at + value.len())
        {
            field.copy_from_slice(value);
            *place = (start, start);
        }
    }

    /// Ends every field that is in use; answers the message's length.
    pub(super) fn finish(self) -> Option<usize> {
        let [(mut at, _), (file, _), (sname, _)] = self.places;
        let mut overload = 0;
        for (bit, start, end) in [(1, field::FILE.start, file), (2, field::SNAME.start, sname)] {
            if end > start {
                *self.message.get_mut(end)? = code::END;
                overload |= bit;
            }
        }
        if overload != 0 {
            let option = [code::OVERLOAD, 1, overload];
            self.message.get_mut(at..at + 3)?.copy_from_slice(&option);
            at += 3;
        }
        *self.message.get_mut(at)? = code::END;
        Some((at + 1).max(LEAST))
    }
}
