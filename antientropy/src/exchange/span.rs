//! Ranges of tokens.

use ring::Token;

use crate::residue::Residue;

/// A range of tokens, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// The first.
    pub first: Token,
    /// The last.
    pub last: Token,
}

impl Span {
    /// The tokens that begin with these bits, so many.
    ///
    /// # Panics
    ///
    /// If there are more than 64.
    #[must_use]
    pub fn of_prefix(prefix: u64, bits: u8) -> Span {
        assert!(bits <= 64, "a token has 64 bits");
        let rest = 64 - u32::from(bits);
        let first = prefix.checked_shl(rest).unwrap_or(0);
        let last = first | u64::MAX.checked_shr(u32::from(bits)).unwrap_or(0);
        Span { first: Token(first), last: Token(last) }
    }

    /// The tokens of a position.
    #[must_use]
    pub fn of_position(position: Residue) -> Span {
        Span::of_positions(position.get(), 0)
    }

    /// The tokens of the positions that begin with `prefix`, without their last bits, so many.
    #[must_use]
    pub fn of_positions(prefix: u64, shift: u8) -> Span {
        let last_of_all = Residue::MAX.get();
        let first = (prefix << shift).min(last_of_all) << 8;
        let last = (prefix + 1).checked_shl(u32::from(shift)).map_or(u64::MAX, |end| end - 1);
        // The last position has all tokens that are left.
        let last = if last >= last_of_all { u64::MAX } else { last << 8 | 0xff };
        Span { first: Token(first), last: Token(last) }
    }

    /// Whether a token is in it.
    #[must_use]
    pub fn contains(&self, token: Token) -> bool {
        (self.first..=self.last).contains(&token)
    }

    /// From a token in it on.
    #[must_use]
    pub fn from(&self, first: Token) -> Span {
        Span { first, last: self.last }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash_tree::position_of;

    #[test]
    fn prefixes_cut_the_circle_without_a_gap() {
        for bits in [0_u8, 1, 7, 16] {
            let mut next = Some(0);
            for prefix in 0..1_u64 << bits {
                let span = Span::of_prefix(prefix, bits);
                assert_eq!(Some(span.first.0), next);
                next = span.last.0.checked_add(1);
            }
            assert_eq!(next, None);
        }
        let last = Span::of_positions((1 << 56) - 1, 0);
        assert_eq!(last, Span::of_position(Residue::MAX), "what is above the largest position is at it");
        assert_eq!(Span::of_positions(3, 40).first.0, 3 << 48);
        assert_eq!(Span::of_positions(3, 40).last.0, (4 << 48) - 1);
        assert_eq!(Span::of_prefix(7, 64), Span { first: Token(7), last: Token(7) });
    }

    #[test]
    fn every_token_is_in_the_span_of_its_position() {
        let largest = Residue::MAX.get() << 8;
        for token in [0, 1, 255, 256, 1 << 40, largest - 1, largest, largest | 0xff, largest + 256, u64::MAX]
        {
            let span = Span::of_position(position_of(Token(token)));
            assert!(span.contains(Token(token)), "{token:x}: {span:?}");
            assert_eq!(position_of(span.first), position_of(span.last), "{token:x}");
        }
    }
}
