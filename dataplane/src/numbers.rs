//! The numbers that packets and tables carry, each a type of its own, so that none is taken for another.

use std::fmt;

macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident($number:ty);)*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
            pub struct $name($number);

            impl $name {
                /// The bare number.
                #[inline(always)]
                pub const fn get(self) -> $number {
                    self.0
                }
            }

            impl From<$number> for $name {
                #[inline(always)]
                fn from(number: $number) -> Self {
                    Self(number)
                }
            }

            impl PartialEq<$number> for $name {
                #[inline(always)]
                fn eq(&self, number: &$number) -> bool {
                    self.0 == *number
                }
            }

            impl fmt::Display for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    self.0.fmt(f)
                }
            }
        )*
    };
}

impl Vni {
    /// No VPC's: what is on external networks.
    pub const OUTSIDE: Self = Self(0);
}

numbers! {
    /// A VXLAN network identifier (RFC 7348 §5), or the key of a GRE tunnel (RFC 2890 §2.1): the VPC that a packet is in. 24 bits.
    Vni(u32);
    /// The place of a VPC in this host's budgets; stays while the VPC is known.
    VpcIndex(u32);
    /// The generation in which a VPC changed last: what was decided for its packets holds as long as it does. Never 0 in a snapshot that is in force.
    Epoch(u32);
}
