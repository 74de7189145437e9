//! Numbers modulo the largest prime below 2^56, which is 2^56 - 5: sums of them can be taken apart again by division,
//! and seven bytes hold one.

use std::ops::{Add, AddAssign, Mul, Neg, Sub, SubAssign};

/// The modulus.
const PRIME: u64 = (1 << 56) - 5;

/// A number modulo 2^56 - 5.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Residue(u64);

impl Residue {
    /// Zero.
    pub const ZERO: Residue = Residue(0);
    /// One.
    pub const ONE: Residue = Residue(1);
    /// The largest.
    pub const MAX: Residue = Residue(PRIME - 1);
    /// The length of an encoding in bytes.
    pub const BYTES: usize = 7;

    /// A number modulo the prime.
    #[must_use]
    pub const fn new(number: u64) -> Residue {
        Residue(number % PRIME)
    }

    /// The number, below 2^56 - 5.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number by which this one has to be multiplied for one; none for zero.
    #[must_use]
    pub fn inverse(self) -> Option<Residue> {
        // Fermat: a^(p-1) is one.
        (self != Residue::ZERO).then(|| self.power(PRIME - 2))
    }

    /// Seven bytes, the highest first.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Residue::BYTES] {
        let [_, rest @ ..] = self.0.to_be_bytes();
        rest
    }

    /// What [`Residue::to_bytes`] made; none of any other bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Residue::BYTES]) -> Option<Residue> {
        let mut wide = [0; 8];
        wide[1..].copy_from_slice(&bytes);
        let number = u64::from_be_bytes(wide);
        (number < PRIME).then_some(Residue(number))
    }

    fn power(self, mut exponent: u64) -> Residue {
        let (mut base, mut power) = (self, Residue::ONE);
        while exponent > 0 {
            if exponent & 1 == 1 {
                power = power * base;
            }
            base = base * base;
            exponent >>= 1;
        }
        power
    }
}

impl Add for Residue {
    type Output = Residue;

    fn add(self, other: Residue) -> Residue {
        let sum = self.0 + other.0;
        Residue(if sum >= PRIME { sum - PRIME } else { sum })
    }
}

impl Sub for Residue {
    type Output = Residue;

    fn sub(self, other: Residue) -> Residue {
        let less = if self.0 >= other.0 { self.0 } else { self.0 + PRIME };
        Residue(less - other.0)
    }
}

impl Neg for Residue {
    type Output = Residue;

    fn neg(self) -> Residue {
        Residue::ZERO - self
    }
}

impl Mul for Residue {
    type Output = Residue;

    fn mul(self, other: Residue) -> Residue {
        let product = u128::from(self.0) * u128::from(other.0);
        // 2^56 is 5: what is above comes back five times.
        let fold = |number: u128| (number & ((1 << 56) - 1)) + (number >> 56) * 5;
        let folded = u64::try_from(fold(fold(product))).expect("below 2^56 + 2^8");
        Residue(if folded >= PRIME { folded - PRIME } else { folded })
    }
}

impl AddAssign for Residue {
    fn add_assign(&mut self, other: Residue) {
        *self = *self + other;
    }
}

impl SubAssign for Residue {
    fn sub_assign(&mut self, other: Residue) {
        *self = *self - other;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Miller and Rabin's test with witnesses that suffice below 2^64.
    #[test]
    fn the_modulus_is_prime() {
        let (odd, twos) = ((PRIME - 1) >> (PRIME - 1).trailing_zeros(), (PRIME - 1).trailing_zeros());
        for witness in [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37] {
            let mut power = Residue::new(witness).power(odd);
            let mut is_one = power == Residue::ONE;
            for _ in 0..twos {
                is_one |= power == -Residue::ONE;
                power = power * power;
            }
            assert!(is_one, "{witness} says that it is not");
        }
    }

    proptest! {
        #[test]
        fn it_is_arithmetic_modulo_the_prime(a: u64, b: u64) {
            let (x, y) = (Residue::new(a), Residue::new(b));
            let reference = |number: u128| Residue::new(u64::try_from(number % u128::from(PRIME)).unwrap());
            let (wide_a, wide_b) = (u128::from(x.get()), u128::from(y.get()));
            prop_assert_eq!(x + y, reference(wide_a + wide_b));
            prop_assert_eq!(x * y, reference(wide_a * wide_b));
            prop_assert_eq!(x - y + y, x);
            prop_assert_eq!(x + -x, Residue::ZERO);
            prop_assert_eq!(Residue::from_bytes(x.to_bytes()), Some(x));
            if let Some(inverse) = y.inverse() {
                prop_assert_eq!(x * y * inverse, x);
            }
        }
    }

    #[test]
    fn the_ends_of_the_range_are_right() {
        let most = Residue::new(PRIME - 1);
        assert_eq!(most + Residue::ONE, Residue::ZERO);
        assert_eq!(most * most, Residue::ONE);
        assert_eq!(Residue::new(PRIME), Residue::ZERO);
        assert_eq!(Residue::ZERO.inverse(), None);
        let over = |number: u64| {
            let [_, rest @ ..] = number.to_be_bytes();
            Residue::from_bytes(rest)
        };
        assert_eq!((over(PRIME), over(PRIME - 1)), (None, Some(most)));
    }
}
