//! Connections to workers: TCP, and TLS over it where the worker's URL says `https`; HTTP/1.1 over either.

use std::{cell::RefCell, io, sync::Arc};

use rustls::{ClientConfig, client::Resumption};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::gateway::{byte_stream::ByteStream, worker::Worker};

mod framing;
mod head;
mod reply;
#[cfg(test)]
mod tests;
mod wire;

pub(crate) use self::{
    head::RequestHead,
    reply::Reply,
    wire::{ExchangeError, Wire},
};

/// Workers whose sessions one core remembers, for shorter handshakes; the least recently used goes.
const SESSIONS_MAX: usize = 64;

/// What one core keeps between two handshakes with workers: sessions of its own, so that no core waits for another.
#[derive(Default)]
pub(crate) struct TlsSessions(RefCell<Option<Own>>);

/// A configuration as the material gave it, and the same with this core's sessions.
struct Own {
    given: Arc<ClientConfig>,
    connector: TlsConnector,
}

impl TlsSessions {
    /// New sessions as soon as the material was replaced: those of before were made on other terms.
    fn connector(&self, given: Arc<ClientConfig>) -> TlsConnector {
        let mut own = self.0.borrow_mut();
        if let Some(own) = own.as_ref().filter(|own| Arc::ptr_eq(&own.given, &given)) {
            return own.connector.clone();
        }
        let mut config = ClientConfig::clone(&given);
        config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
        let connector = TlsConnector::from(Arc::new(config));
        *own = Some(Own { given, connector: connector.clone() });
        connector
    }
}

/// Connects to a worker on the request path, with the sessions of this core. Takes as long as the worker does.
///
/// # Errors
/// When there is no connection, or the worker's certificate is not good for its host: nothing was sent then.
pub(crate) async fn connect(worker: &Worker, sessions: &TlsSessions) -> io::Result<Wire> {
    let stream = reach(worker).await?;
    if !worker.tls {
        return Ok(Wire::new(ByteStream::Plain(stream)));
    }
    let connector = sessions.connector(config(worker)?);
    secure(worker, stream, &connector).await
}

/// The same elsewhere, where a handshake is a handshake.
///
/// # Errors
/// As [`connect`].
pub(crate) async fn connect_once(worker: &Worker) -> io::Result<Wire> {
    let stream = reach(worker).await?;
    if !worker.tls {
        return Ok(Wire::new(ByteStream::Plain(stream)));
    }
    secure(worker, stream, &TlsConnector::from(config(worker)?)).await
}

async fn reach(worker: &Worker) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(worker.authority.as_str()).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn config(worker: &Worker) -> io::Result<Arc<ClientConfig>> {
    let material = worker.material.as_ref();
    Ok(material.ok_or_else(|| io::Error::other("no authorities to check the worker by"))?.client_config())
}

async fn secure(worker: &Worker, stream: TcpStream, connector: &TlsConnector) -> io::Result<Wire> {
    let host = worker.authority.host().trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let stream = connector.connect(name, stream).await?;
    Ok(Wire::new(ByteStream::Tls(Box::new(stream.into()))))
}
