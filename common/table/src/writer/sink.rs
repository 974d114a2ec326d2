//! Encoded bytes on their way from the encoding thread to the upload.

use std::io;

use bytes::Bytes;
use everlog_common::compute;
use tokio::sync::mpsc;

use super::encode::FinishedFile;

/// Bytes handed over at once.
const CHUNK_BYTES: usize = 1 << 20;
/// Pieces on their way at once.
pub(super) const PIECES_IN_FLIGHT: usize = 4;

/// What the encoding thread says to the upload. Files come one after the other, each as open, bytes, close.
#[derive(Debug)]
pub(super) enum Piece {
    /// A file begins; the number is that of its table partition.
    Open(usize),
    Bytes(Bytes),
    Close(Box<FinishedFile>),
}

/// Nobody takes the pieces any more.
#[derive(Debug, thiserror::Error)]
#[error("the upload has ended")]
pub(super) struct Gone;

/// A file as a stream of pieces.
#[derive(Debug)]
pub(super) struct Sink {
    pieces: mpsc::Sender<Piece>,
    buffer: Vec<u8>,
    /// Whether bytes are kept back, for what is written yet may still be changed.
    held: bool,
}

impl Sink {
    pub(super) fn new(pieces: mpsc::Sender<Piece>) -> Self {
        Self {
            pieces,
            buffer: Vec::new(),
            held: false,
        }
    }

    /// Keeps back everything from here on.
    pub(super) fn hold(&mut self) {
        self.held = true;
    }

    /// What was kept back, and perhaps some bytes before it.
    pub(super) fn held_bytes(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// Hands over all bytes.
    pub(super) fn release(&mut self) -> Result<(), Gone> {
        self.held = false;
        if self.buffer.is_empty() {
            return Ok(());
        }
        let bytes = Bytes::from(std::mem::take(&mut self.buffer));
        compute::send(&self.pieces, Piece::Bytes(bytes)).map_err(|_| Gone)
    }
}

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if !self.held && self.buffer.len() >= CHUNK_BYTES {
            self.release()
                .map_err(|gone| io::Error::new(io::ErrorKind::BrokenPipe, gone))?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
