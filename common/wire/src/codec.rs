//! What batches are compressed by, as streams of bytes.

use std::io::{self, Read};

/// How the records of a batch are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// Blocks in the frame of Java's snappy library, or one bare block as librdkafka writes it.
    Snappy,
    /// The LZ4 frame format.
    Lz4,
    /// RFC 8878.
    Zstd,
}

impl Codec {
    pub(crate) const fn of(bits: i16) -> Option<Self> {
        Some(match bits {
            0 => Self::None,
            1 => Self::Gzip,
            2 => Self::Snappy,
            3 => Self::Lz4,
            4 => Self::Zstd,
            _ => return None,
        })
    }

    /// What `packed` unpacks to, as it is read.
    pub(crate) fn reader(self, packed: &[u8]) -> io::Result<Unpacking<'_>> {
        Ok(match self {
            Self::None => Unpacking::Plain(packed),
            Self::Gzip => Unpacking::Gzip(Box::new(flate2::bufread::GzDecoder::new(packed))),
            Self::Snappy => Unpacking::Snappy(Snappy::of(packed)),
            Self::Lz4 => Unpacking::Lz4(Box::new(lz4_flex::frame::FrameDecoder::new(packed))),
            Self::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(packed)?;
                Unpacking::Zstd(Box::new(decoder))
            }
        })
    }
}

pub(crate) enum Unpacking<'a> {
    Plain(&'a [u8]),
    Gzip(Box<flate2::bufread::GzDecoder<&'a [u8]>>),
    Snappy(Snappy<'a>),
    Lz4(Box<lz4_flex::frame::FrameDecoder<&'a [u8]>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, &'a [u8]>>),
}

impl Read for Unpacking<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(bytes) => bytes.read(out),
            Self::Gzip(gzip) => gzip.read(out),
            Self::Snappy(snappy) => snappy.read(out),
            Self::Lz4(lz4) => lz4.read(out),
            Self::Zstd(zstd) => zstd.read(out),
        }
    }
}

/// Before the blocks of Java's snappy library: the magic, the version, and the oldest version that can read it.
const FRAME_MAGIC: &[u8] = b"\x82SNAPPY\0";
const FRAME_HEADER_BYTES: usize = 16;
/// A copy of 64 bytes takes three: no block unpacks to more than this many times its size (and the length's own bytes).
const RATIO_MAX: usize = 32;

pub(crate) struct Snappy<'a> {
    rest: &'a [u8],
    framed: bool,
    block: Vec<u8>,
    given: usize,
}

impl<'a> Snappy<'a> {
    fn of(packed: &'a [u8]) -> Self {
        let framed = packed.len() >= FRAME_HEADER_BYTES && packed.starts_with(FRAME_MAGIC);
        Self {
            rest: if framed {
                &packed[FRAME_HEADER_BYTES..]
            } else {
                packed
            },
            framed,
            block: Vec::new(),
            given: 0,
        }
    }

    /// The next block, packed; none at the end.
    fn next_block(&mut self) -> io::Result<Option<&'a [u8]>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        if !self.framed {
            return Ok(Some(std::mem::take(&mut self.rest)));
        }
        let cut_off = || io::Error::new(io::ErrorKind::UnexpectedEof, "a snappy block is cut off");
        let (length, rest) = self.rest.split_first_chunk().ok_or_else(cut_off)?;
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        let (block, rest) = rest.split_at_checked(length).ok_or_else(cut_off)?;
        self.rest = rest;
        Ok(Some(block))
    }
}

impl Read for Snappy<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.given == self.block.len() {
            let Some(packed) = self.next_block()? else {
                return Ok(0);
            };
            // what a block says it holds is not believed before memory is taken for it
            let length = snap::raw::decompress_len(packed)?;
            if length / RATIO_MAX > packed.len() {
                let lie = "a snappy block says that it holds more than it can";
                return Err(io::Error::new(io::ErrorKind::InvalidData, lie));
            }
            self.block.resize(length, 0);
            self.given = 0;
            let unpacked = snap::raw::Decoder::new().decompress(packed, &mut self.block)?;
            self.block.truncate(unpacked);
        }
        let some = self.block.get(self.given..).unwrap_or_default();
        let count = some.len().min(out.len());
        let (from, to) = (some.get(..count), out.get_mut(..count));
        if let (Some(from), Some(to)) = (from, to) {
            to.copy_from_slice(from);
        }
        self.given += count;
        Ok(count)
    }
}
