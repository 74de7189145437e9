//! Frames: a stream of bytes cut into messages.
//!
//! ```text
//! frame    length (4, big-endian): of the body
//!          body
//! ```
//!
//! A stream delivers its bytes in chunks that know nothing of frames. [`FrameReader`] takes them as they come: a
//! frame that lies whole in one chunk comes out as a slice of it, one that does not is gathered.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

/// Bytes of a frame's length.
const LENGTH_BYTES: usize = 4;

/// The most that is allocated for a frame beyond what has arrived of it. Most frames that do not fit a chunk fit
/// this, and are then gathered in one allocation of their size.
const STEP_BYTES: usize = 256 << 10;

/// The stream cannot be read on: whatever follows, nobody knows where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Longer than the other side may send.
    #[error("a frame of {length_bytes} bytes, the limit is {limit_bytes}")]
    TooLong {
        /// The length that it claims.
        length_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
}

/// Appends a frame whose body is what `body` appends.
///
/// # Panics
///
/// If that is 4 GiB or more. It may still be more than the receiver takes: who sends what others chose the size of
/// compares with the limit first.
pub fn put_frame(out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32(0);
    body(out);
    let length = out.len() - start - LENGTH_BYTES;
    let length = u32::try_from(length).expect("what is sent is bounded far below 2^32");
    out[start..start + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
}

/// Cuts a stream into the bodies of its frames.
///
/// Push what arrives, then take [`next`](FrameReader::next) until there is none. What was pushed and not yet taken is
/// kept as it is; the rest of a frame that has begun is copied at once, so that a chunk, which may be a small piece of
/// a large buffer, is not kept while the frame's end is waited for. Memory is at most what has arrived and a fixed
/// step, whatever length a frame claims.
#[derive(Debug)]
pub struct FrameReader {
    limit_bytes: usize,
    chunks: VecDeque<Bytes>,
    state: State,
}

/// Where in a frame the stream stands.
#[derive(Debug)]
enum State {
    /// In its length.
    Length {
        /// As far as it has arrived.
        bytes: [u8; LENGTH_BYTES],
        /// How far that is. Below its size.
        arrived: usize,
    },
    /// In its body.
    Body {
        /// How long it is.
        length: usize,
        /// What of it was gathered. Less than all of it.
        arrived: Vec<u8>,
    },
    /// Nowhere: a frame was refused, and so is all that follows.
    Failed(FrameError),
}

impl State {
    /// Before a frame.
    const START: State = State::Length { bytes: [0; LENGTH_BYTES], arrived: 0 };
}

/// Bodies up to this length are copied out of their chunk. A key or a value is a slice of its frame and may be kept for
/// long, in a cache above all: a hundred bytes would keep a chunk of 64 KiB with them.
const COPY_BYTES_MAX: usize = 4 * 1024;

fn take_body(chunk: &mut Bytes, length: usize) -> Bytes {
    if length > COPY_BYTES_MAX {
        return chunk.split_to(length);
    }
    let body = Bytes::copy_from_slice(&chunk[..length]);
    chunk.advance(length);
    body
}

impl FrameReader {
    /// A reader of frames whose bodies have at most `limit_bytes`.
    #[must_use]
    pub fn new(limit_bytes: usize) -> FrameReader {
        FrameReader { limit_bytes, chunks: VecDeque::new(), state: State::START }
    }

    /// What arrived next. Long frames that lie whole in it will be slices of it.
    pub fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.chunks.push_back(chunk);
        }
    }

    /// What arrived next, copied.
    pub fn extend(&mut self, chunk: &[u8]) {
        self.push(Bytes::copy_from_slice(chunk));
    }

    /// The body of the next frame; none if it has not arrived whole.
    ///
    /// # Errors
    ///
    /// If the next frame is too long, which is known as soon as its length is. From then on always.
    // Not an iterator: none means "not yet".
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Bytes>, FrameError> {
        loop {
            match &mut self.state {
                State::Failed(error) => return Err(*error),
                State::Length { bytes, arrived } => {
                    let Some(chunk) = self.chunks.front_mut() else { return Ok(None) };
                    let count = chunk.len().min(LENGTH_BYTES - *arrived);
                    chunk.copy_to_slice(&mut bytes[*arrived..*arrived + count]);
                    *arrived += count;
                    if *arrived == LENGTH_BYTES {
                        let length = usize::try_from(u32::from_be_bytes(*bytes)).unwrap_or(usize::MAX);
                        self.state = State::body(length, self.limit_bytes);
                    }
                }
                State::Body { length, arrived } => match self.chunks.front_mut() {
                    Some(chunk) if arrived.is_empty() && chunk.len() >= *length => {
                        let body = take_body(chunk, *length);
                        self.drop_empty_chunk();
                        self.state = State::START;
                        return Ok(Some(body));
                    }
                    None if *length == 0 => {
                        self.state = State::START;
                        return Ok(Some(Bytes::new()));
                    }
                    None => return Ok(None),
                    Some(chunk) => {
                        let count = chunk.len().min(*length - arrived.len());
                        gather(arrived, *length, &chunk[..count]);
                        chunk.advance(count);
                        if arrived.len() == *length {
                            let body = Bytes::from(std::mem::take(arrived));
                            self.drop_empty_chunk();
                            self.state = State::START;
                            return Ok(Some(body));
                        }
                    }
                },
            }
            self.drop_empty_chunk();
        }
    }

    /// Whether all that was pushed was taken, to the end of a frame: where a stream may end.
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        self.chunks.is_empty() && matches!(self.state, State::Length { arrived: 0, .. })
    }

    fn drop_empty_chunk(&mut self) {
        if self.chunks.front().is_some_and(Bytes::is_empty) {
            self.chunks.pop_front();
        }
    }
}

impl State {
    /// In the body of a frame that claims this length.
    fn body(length: usize, limit_bytes: usize) -> State {
        if length > limit_bytes {
            return State::Failed(FrameError::TooLong { length_bytes: length, limit_bytes });
        }
        State::Body { length, arrived: Vec::new() }
    }
}

/// Appends a piece of a body of `length` bytes, with room for no more than a step beyond it.
fn gather(arrived: &mut Vec<u8>, length: usize, piece: &[u8]) {
    if arrived.capacity() - arrived.len() < piece.len() {
        let missing = length - arrived.len();
        arrived.reserve_exact(missing.min(piece.len().max(STEP_BYTES)));
    }
    arrived.extend_from_slice(piece);
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1 << 20;

    fn frame(body: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        put_frame(&mut out, |out| out.put_slice(body));
        out.to_vec()
    }

    fn taken(frames: &mut FrameReader) -> Vec<Bytes> {
        std::iter::from_fn(|| frames.next().unwrap()).collect()
    }

    #[test]
    fn a_frame_is_its_length_and_its_body() {
        assert_eq!(frame(b"abc"), b"\0\0\0\x03abc");
        assert_eq!(frame(b""), b"\0\0\0\0");
    }

    #[test]
    fn frames_are_the_same_however_the_stream_is_cut() {
        let bodies: [&[u8]; 5] = [b"abc", b"", b"", &[7; 300], b"d"];
        let stream: Vec<u8> = bodies.iter().flat_map(|body| frame(body)).collect();
        for size in 1..=stream.len() {
            let mut frames = FrameReader::new(LIMIT);
            let mut found = Vec::new();
            for chunk in stream.chunks(size) {
                frames.extend(chunk);
                found.extend(taken(&mut frames));
            }
            assert_eq!(found, bodies, "chunks of {size}");
            assert!(frames.is_between_frames());
            // Whoever takes only at the end finds the same.
            let mut frames = FrameReader::new(LIMIT);
            stream.chunks(size).for_each(|chunk| frames.extend(chunk));
            assert!(!frames.is_between_frames());
            assert_eq!(taken(&mut frames), bodies, "chunks of {size}, all at once");
            assert!(frames.is_between_frames());
        }
    }

    #[test]
    fn a_long_frame_that_lies_in_one_chunk_is_not_copied_and_a_short_one_keeps_no_chunk() {
        let long = [7; COPY_BYTES_MAX + 1];
        let stream = Bytes::from([frame(b"abc"), frame(&long), frame(&long[1..])].concat());
        let range = stream.as_ptr_range();
        let mut frames = FrameReader::new(long.len());
        frames.push(stream.slice(..5));
        assert_eq!(frames.next(), Ok(None));
        frames.push(stream.slice(5..));
        let mut next = || frames.next().unwrap().unwrap();
        let (cut, whole, short) = (next(), next(), next());
        assert!(!range.contains(&cut.as_ptr()), "its beginning was in another chunk");
        assert!(range.contains(&whole.as_ptr()));
        assert!(!range.contains(&short.as_ptr()), "it would keep the chunk");
    }

    #[test]
    fn a_stream_that_ends_in_a_frame_is_not_between_frames() {
        let stream = frame(b"abc");
        for cut in 1..stream.len() {
            let mut frames = FrameReader::new(LIMIT);
            frames.extend(&stream[..cut]);
            assert_eq!(frames.next(), Ok(None), "cut to {cut}");
            assert!(!frames.is_between_frames(), "cut to {cut}");
        }
    }

    #[test]
    fn a_frame_above_the_limit_is_refused_as_soon_as_its_length_is_known_and_so_is_all_that_follows() {
        let mut frames = FrameReader::new(3);
        frames.extend(&frame(b"abc"));
        frames.extend(&[0, 0, 0]);
        assert_eq!(frames.next().unwrap().unwrap(), "abc");
        assert_eq!(frames.next(), Ok(None));
        frames.extend(&[4]);
        let error = FrameError::TooLong { length_bytes: 4, limit_bytes: 3 };
        assert_eq!(frames.next(), Err(error));
        frames.extend(&frame(b"abc"));
        assert_eq!(frames.next(), Err(error));
        assert!(!frames.is_between_frames());
        assert_eq!(error.to_string(), "a frame of 4 bytes, the limit is 3");
    }

    /// Four bytes may claim the most that there can be; what is allocated follows what arrives.
    #[test]
    fn memory_follows_what_arrived_and_not_what_is_claimed() {
        let length = 40 << 20;
        let mut frames = FrameReader::new(64 << 20);
        frames.extend(&u32::try_from(length).unwrap().to_be_bytes());
        let piece = Bytes::from(vec![7; 3_000]);
        let mut arrived = 0;
        while arrived + piece.len() < length {
            frames.push(piece.clone());
            arrived += piece.len();
            assert_eq!(frames.next(), Ok(None));
            let State::Body { arrived: gathered, .. } = &frames.state else { panic!("{:?}", frames.state) };
            assert_eq!(gathered.len(), arrived);
            assert!(gathered.capacity() <= arrived + STEP_BYTES, "{} for {arrived}", gathered.capacity());
            assert!(frames.chunks.is_empty(), "chunks are not kept");
        }
        frames.extend(&vec![7; length - arrived]);
        assert_eq!(frames.next().unwrap().unwrap().len(), length);
        assert!(frames.is_between_frames());
    }
}
