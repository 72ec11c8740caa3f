//! What the agent sends on the connection that carries ttrpc: answers, nothing else.
//!
//! All our calls are answered by one frame. ttrpc's client takes the first frame of a
//! stream for the answer as well (type DATA), but keeps its note of the call then: a
//! hostile agent could make us keep one for each call. So such a frame breaks the
//! connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// A frame's header: length (4 bytes), stream (4), type, flags (ttrpc's PROTOCOL.md).
const HEADER: usize = 10;
/// Where the header has the type.
const TYPE: usize = 8;
/// The type of an answer.
const RESPONSE: u8 = 2;

/// A connection on which the other side may only answer.
pub(super) struct Answers {
    stream: UnixStream,
    header: [u8; HEADER],
    /// Bytes of the header that are known.
    known: usize,
    /// Bytes of the payload that are still to come.
    payload: usize,
}

impl Answers {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            header: [0; HEADER],
            known: 0,
            payload: 0,
        }
    }

    /// Follows the frames through what has been read.
    fn follow(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.payload > 0 {
                let passed = self.payload.min(bytes.len());
                self.payload -= passed;
                bytes = &bytes[passed..];
                continue;
            }
            let taken = (HEADER - self.known).min(bytes.len());
            self.header[self.known..self.known + taken].copy_from_slice(&bytes[..taken]);
            self.known += taken;
            bytes = &bytes[taken..];
            if self.known == HEADER {
                self.known = 0;
                let [a, b, c, d, ..] = self.header;
                self.payload = u32::from_be_bytes([a, b, c, d]) as usize;
                if self.header[TYPE] != RESPONSE {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("a frame of type {} is no answer", self.header[TYPE]),
                    ));
                }
            }
        }
        Ok(())
    }
}

impl AsyncRead for Answers {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let checked = self.follow(&buffer.filled()[before..]);
        if checked.is_err() {
            buffer.set_filled(before);
        }
        Poll::Ready(checked)
    }
}

impl AsyncWrite for Answers {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes().to_vec();
        frame.extend([0, 0, 0, 1, kind, 0]);
        frame.extend(payload);
        frame
    }

    /// What is read of `sent`, which arrives `step` bytes at a time.
    async fn read(sent: &[u8], step: usize) -> io::Result<Vec<u8>> {
        let (ours, mut theirs) = UnixStream::pair()?;
        let mut answers = Answers::new(ours);
        let mut got = Vec::new();
        for part in sent.chunks(step) {
            theirs.write_all(part).await?;
            let mut buffer = vec![0; part.len()];
            answers.read_exact(&mut buffer).await?;
            got.extend(buffer);
        }
        Ok(got)
    }

    #[tokio::test]
    async fn answers_pass_and_nothing_else_does() {
        let answers = [frame(2, b""), frame(2, b"hello"), frame(2, &[1; 3000])].concat();
        for step in [1, 7, 10, 13, answers.len()] {
            assert_eq!(read(&answers, step).await.unwrap(), answers);
            for kind in [1, 3, 0, 255] {
                let wrong = [answers.clone(), frame(kind, b"x")].concat();
                let error = read(&wrong, step).await.unwrap_err();
                assert_eq!(
                    error.to_string(),
                    format!("a frame of type {kind} is no answer")
                );
            }
        }
    }
}
