//! Fields: how a number, a name, a string of bytes, an option or a choice stands in a frame.
//!
//! ```text
//! number      1, 2, 4, 8 or 16 bytes, big-endian
//! bool        1 byte: 0 or 1
//! option      1 byte: 0 nothing follows, 1 the thing follows
//! bytes       length (4), the bytes
//! list        count (4), the elements
//! duration    8 bytes: nanoseconds; what does not fit, 584 years, is the most that does
//! choice      1 byte: which, then the fields of that variant in the order in which the table below names them
//! serde       postcard, to the end of the frame
//! ```
//!
//! All but the last have one form for each value, and whatever is not that form is refused. Lengths and counts are
//! checked against what is left of the frame before anything is allocated; bytes come out as slices of the frame,
//! which share its memory and keep all of it alive.
//!
//! The codecs of structs and enums are tables, [`wire_fields!`](crate::wire_fields) and
//! [`wire_variants!`](crate::wire_variants), here and for what only nodes say: one list, in the order of the wire, makes both directions, so that they
//! cannot drift apart. Golden bytes in the tests pin what the tables say.

use std::{mem, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use ring::{ClusterId, DatacenterId, Durability, Epoch, KeyspaceId, NodeId, PartitionId, StoreId, VoterId};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

use crate::{Access, RequestId, Version};

/// What is wrong with bytes that should be fields of a message. From a peer it means a bug, or a version that was not
/// negotiated.
// Small and without a destructor: it stands in the result of every field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The frame ends within a field, or a length or count is above what is left of it.
    #[error("a frame cut short")]
    Truncated,
    /// The frame goes on after its message.
    #[error("a frame with {0} bytes after its message")]
    TrailingBytes(usize),
    /// A kind of frame that this version does not know, or that the other side may not send.
    #[error("a frame of the unknown kind {0}")]
    UnknownKind(u8),
    /// A choice that this version does not know.
    #[error("a frame with {value} for its {of}")]
    UnknownValue {
        /// What was to be chosen.
        of: &'static str,
        /// What stood there.
        value: u8,
    },
    /// A size that this machine cannot hold.
    #[error("a frame with the size {0}, which is too large for this machine")]
    SizeOutOfRange(u64),
    /// What postcard should read is not what was expected there.
    #[error("a frame with a payload of an unknown form")]
    UnknownPayload,
}

/// Something that stands in a frame.
pub trait Field: Sized {
    /// Appends it.
    ///
    /// # Panics
    ///
    /// If a length or a count has no 32 bits: what is sent is bounded far below that.
    fn put_to(&self, out: &mut BytesMut);

    /// Takes one off the front.
    ///
    /// # Errors
    ///
    /// See [`Malformed`]; the input may then be consumed in part.
    fn take_from(input: &mut Bytes) -> Result<Self, Malformed>;
}

/// A field of which lists are made.
pub trait Element: Field {
    /// The shortest encoding of one, which bounds how many the rest of a frame can hold.
    const BYTES_MIN: usize;
}

/// Refuses what is left of a frame after its message.
///
/// # Errors
///
/// [`Malformed::TrailingBytes`] if anything is.
pub fn finish(input: &Bytes) -> Result<(), Malformed> {
    if input.is_empty() { Ok(()) } else { Err(Malformed::TrailingBytes(input.len())) }
}

/// Takes the count of a list whose elements take at least `bytes_min` each, of which the input has to have room for
/// all.
///
/// # Errors
///
/// [`Malformed::Truncated`] if it has not.
#[inline]
pub fn take_count(input: &mut Bytes, bytes_min: usize) -> Result<usize, Malformed> {
    let count = usize::try_from(u32::take_from(input)?).map_err(|_| Malformed::Truncated)?;
    if count <= input.len() / bytes_min { Ok(count) } else { Err(Malformed::Truncated) }
}

/// Appends a length or a count.
///
/// # Panics
///
/// If it has no 32 bits.
#[inline]
pub fn put_count(count: usize, out: &mut BytesMut) {
    out.put_u32(u32::try_from(count).expect("what is sent is bounded far below 2^32"));
}

/// Appends a value by postcard. Only the end of the frame ends it.
pub fn put_serde(value: &impl Serialize, out: &mut BytesMut) {
    let written = postcard::serialize_with_flavor(value, Appending(out));
    written.expect("memory does not run full, and no type of ours has a sequence of unknown length");
}

/// Takes a value by postcard from the rest of the frame.
///
/// Vectors are allocated by their count only up to a mebibyte each before there are elements to go into them; serde
/// sees to that.
///
/// # Errors
///
/// [`Malformed::UnknownPayload`] and [`Malformed::TrailingBytes`].
pub fn take_serde<T: DeserializeOwned>(input: &mut Bytes) -> Result<T, Malformed> {
    let (value, rest) = postcard::take_from_bytes(input).map_err(|_| Malformed::UnknownPayload)?;
    if !rest.is_empty() {
        return Err(Malformed::TrailingBytes(rest.len()));
    }
    input.clear();
    Ok(value)
}

/// Lets postcard write where the frame is made.
struct Appending<'a>(&'a mut BytesMut);

impl postcard::ser_flavors::Flavor for Appending<'_> {
    type Output = ();

    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.0.put_slice(data);
        Ok(())
    }

    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.0.put_u8(data);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// The codec of newtypes: that of what each holds.
#[macro_export]
macro_rules! wire_newtypes {
    ($($name:ident),* $(,)?) => {$(
        impl $crate::wire::Field for $name {
            #[inline]
            fn put_to(&self, out: &mut ::bytes::BytesMut) {
                $crate::wire::Field::put_to(&self.0, out);
            }

            #[inline]
            fn take_from(input: &mut ::bytes::Bytes) -> Result<Self, $crate::wire::Malformed> {
                $crate::wire::Field::take_from(input).map($name)
            }
        }
    )*};
}

/// The codec of a struct: its fields in the order of the wire.
#[macro_export]
macro_rules! wire_fields {
    ($type:ident { $($field:ident),* $(,)? }) => {
        impl $crate::wire::Field for $type {
            #[inline]
            fn put_to(&self, out: &mut ::bytes::BytesMut) {
                $($crate::wire::Field::put_to(&self.$field, out);)*
            }

            #[inline]
            fn take_from(input: &mut ::bytes::Bytes) -> Result<Self, $crate::wire::Malformed> {
                Ok($type { $($field: $crate::wire::Field::take_from(input)?),* })
            }
        }
    };
}

/// The codec of an enum: for each variant its code, and its fields in the order of the wire.
#[macro_export]
macro_rules! wire_variants {
    ($type:ident, $of:literal, {
        $($code:literal => $variant:ident $(($inner:ident))? $({ $($field:ident),* })?),* $(,)?
    }) => {
        impl $crate::wire::Field for $type {
            #[inline]
            fn put_to(&self, out: &mut ::bytes::BytesMut) {
                match self {
                    $($type::$variant $(($inner))? $({ $($field),* })? => {
                        ::bytes::BufMut::put_u8(out, $code);
                        $($crate::wire::Field::put_to($inner, out);)?
                        $($($crate::wire::Field::put_to($field, out);)*)?
                    })*
                }
            }

            #[inline]
            fn take_from(input: &mut ::bytes::Bytes) -> Result<Self, $crate::wire::Malformed> {
                match <u8 as $crate::wire::Field>::take_from(input)? {
                    $($code => {
                        $(let $inner = $crate::wire::Field::take_from(input)?;)?
                        $($(let $field = $crate::wire::Field::take_from(input)?;)*)?
                        Ok($type::$variant $(($inner))? $({ $($field),* })?)
                    })*
                    value => Err($crate::wire::Malformed::UnknownValue { of: $of, value }),
                }
            }
        }
    };
}

/// The codec of the unsigned integers.
macro_rules! numbers {
    ($($number:ident),*) => {$(
        impl Field for $number {
            #[inline]
            fn put_to(&self, out: &mut BytesMut) {
                out.put_slice(&self.to_be_bytes());
            }

            #[inline]
            fn take_from(input: &mut Bytes) -> Result<Self, Malformed> {
                let bytes = *input.first_chunk().ok_or(Malformed::Truncated)?;
                input.advance(mem::size_of::<$number>());
                Ok($number::from_be_bytes(bytes))
            }
        }
    )*};
}

numbers!(u8, u16, u32, u64, u128, i64);

wire_newtypes!(ClusterId, DatacenterId, Epoch, KeyspaceId, NodeId, PartitionId, RequestId, StoreId, VoterId);

impl Element for PartitionId {
    const BYTES_MIN: usize = 2;
}

wire_fields!(Version { counter, actor });
wire_variants!(Access, "access", { 1 => Read, 2 => Write, 3 => Admin });
wire_variants!(Durability, "durability", { 1 => Memory, 2 => Disk });

impl Field for usize {
    #[inline]
    fn put_to(&self, out: &mut BytesMut) {
        out.put_u64(*self as u64);
    }

    #[inline]
    fn take_from(input: &mut Bytes) -> Result<usize, Malformed> {
        let size = u64::take_from(input)?;
        usize::try_from(size).map_err(|_| Malformed::SizeOutOfRange(size))
    }
}

/// A digest: its bytes, without a length.
impl Field for [u8; 32] {
    fn put_to(&self, out: &mut BytesMut) {
        out.put_slice(self);
    }

    fn take_from(input: &mut Bytes) -> Result<[u8; 32], Malformed> {
        let mut digest = [0; 32];
        input.try_copy_to_slice(&mut digest).map_err(|_| Malformed::Truncated)?;
        Ok(digest)
    }
}

impl Field for bool {
    #[inline]
    fn put_to(&self, out: &mut BytesMut) {
        out.put_u8(u8::from(*self));
    }

    #[inline]
    fn take_from(input: &mut Bytes) -> Result<bool, Malformed> {
        match u8::take_from(input)? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(Malformed::UnknownValue { of: "yes or no", value }),
        }
    }
}

impl Field for Duration {
    #[inline]
    fn put_to(&self, out: &mut BytesMut) {
        out.put_u64(u64::try_from(self.as_nanos()).unwrap_or(u64::MAX));
    }

    #[inline]
    fn take_from(input: &mut Bytes) -> Result<Duration, Malformed> {
        u64::take_from(input).map(Duration::from_nanos)
    }
}

impl Field for Bytes {
    #[inline]
    fn put_to(&self, out: &mut BytesMut) {
        put_count(self.len(), out);
        out.put_slice(self);
    }

    #[inline]
    fn take_from(input: &mut Bytes) -> Result<Bytes, Malformed> {
        let length = take_count(input, 1)?;
        Ok(input.split_to(length))
    }
}

impl<T: Field> Field for Option<T> {
    #[inline]
    fn put_to(&self, out: &mut BytesMut) {
        match self {
            None => out.put_u8(0),
            Some(value) => {
                out.put_u8(1);
                value.put_to(out);
            }
        }
    }

    #[inline]
    fn take_from(input: &mut Bytes) -> Result<Option<T>, Malformed> {
        match u8::take_from(input)? {
            0 => Ok(None),
            1 => T::take_from(input).map(Some),
            value => Err(Malformed::UnknownValue { of: "option", value }),
        }
    }
}

impl<T: Element> Field for Vec<T> {
    #[inline]
    fn put_to(&self, out: &mut BytesMut) {
        put_count(self.len(), out);
        self.iter().for_each(|element| element.put_to(out));
    }

    #[inline]
    fn take_from(input: &mut Bytes) -> Result<Vec<T>, Malformed> {
        let count = take_count(input, T::BYTES_MIN)?;
        let mut elements = Vec::with_capacity(count);
        for _ in 0..count {
            elements.push(T::take_from(input)?);
        }
        Ok(elements)
    }
}

impl<T: Field> Field for Box<T> {
    #[inline]
    fn put_to(&self, out: &mut BytesMut) {
        (**self).put_to(out);
    }

    #[inline]
    fn take_from(input: &mut Bytes) -> Result<Box<T>, Malformed> {
        T::take_from(input).map(Box::new)
    }
}
