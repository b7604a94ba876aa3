//! An open pipe: what is read of it, what is sent on it, and how it ends.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::Stream;
use smg_proto::stream::{self as proto, Frame};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::{FRAME_BYTES_MAX, LINGER, Lane, PipeError, PipeId, Shared, connection::Connection};

/// The frames that a pipe sends, our greeting first. Ends when the pipe closes and its queue is flushed.
pub(super) struct Outbound {
    pub(super) shared: Arc<Shared>,
    pub(super) pipe: PipeId,
}

impl Stream for Outbound {
    type Item = Frame;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        self.shared.pipes.poll_outbound(self.pipe, cx)
    }
}

/// Why reading ended.
enum End {
    /// We are closing the pipe.
    Here,
    /// The peer closes it.
    There,
    Failed(PipeError),
}

/// Reads a pipe until it ends, and ends it.
pub(super) async fn read(
    shared: Arc<Shared>,
    pipe: PipeId,
    mut inbound: Streaming<Frame>,
    connection: Arc<Connection>,
    closing: CancellationToken,
) {
    let end = tokio::select! {
        biased;
        () = closing.cancelled() => End::Here,
        end = read_frames(&shared, pipe, &mut inbound) => end,
        error = shared.security.until_distrusted(&connection.chain, connection.identity.as_ref()) => End::Failed(error),
    };
    match end {
        End::Here => {
            // The outbound half flushes and ends; the peer answers by ending its own.
            let _ = tokio::time::timeout(LINGER, discard(&mut inbound)).await;
            shared.pipes.finish(pipe, None);
        }
        End::There => {
            shared.pipes.finish(pipe, None);
            drop(inbound);
            let _ = tokio::time::timeout(LINGER, connection.gone.cancelled()).await;
        }
        End::Failed(error) => {
            let error = connection.verdict_or(error);
            let (addr, reason) = (connection.addr, error.reason());
            tracing::debug!(target: "smg::mesh::transport", pipe = pipe.0, %addr, reason, %error, "pipe lost");
            shared.pipes.finish(pipe, Some(error));
        }
    }
    connection.kill.cancel();
}

async fn read_frames(shared: &Shared, pipe: PipeId, inbound: &mut Streaming<Frame>) -> End {
    loop {
        std::future::poll_fn(|cx| shared.pipes.poll_room(pipe, cx)).await;
        let frame = match inbound.message().await {
            Ok(Some(frame)) => frame,
            // Also what is left of a cut connection: tonic takes a cancelled request for an ended one.
            Ok(None) => return End::Failed(PipeError::Lost(Box::new(io::Error::from(io::ErrorKind::UnexpectedEof)))),
            Err(status) => return End::Failed(PipeError::from_status(status)),
        };
        if frame.lane() == proto::Lane::Close {
            return End::There;
        }
        let Some(lane) = Lane::from_proto(frame.lane()) else { return End::Failed(PipeError::BadFrame) };
        if frame.payload.len() > FRAME_BYTES_MAX {
            return End::Failed(PipeError::FrameTooLarge);
        }
        shared.pipes.push_inbound(pipe, lane, frame.payload);
    }
}

async fn discard(inbound: &mut Streaming<Frame>) {
    while let Ok(Some(_)) = inbound.message().await {}
}
