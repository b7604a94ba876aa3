//! A small HTTP/1.1 client on one connection: thousands of requests a second must cost an unoptimised test little.

use std::{io, net::Ipv4Addr};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufStream},
    net::TcpStream,
};

/// A connection to the node of the host where it was made, kept open from request to request.
#[derive(Debug)]
pub struct Connection {
    stream: BufStream<TcpStream>,
    /// The last answer did not say that there will be no other.
    stays_open: bool,
}

impl Connection {
    pub async fn open() -> io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 8000)).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufStream::new(stream), stays_open: true })
    }

    /// One request with a JSON body, or none when that is empty; status and body of the answer.
    pub async fn send(&mut self, method: &str, path: &str, body: &str) -> io::Result<(u16, Vec<u8>)> {
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: node\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        self.stream.write_all(head.as_bytes()).await?;
        self.stream.flush().await?;
        let status_line = self.line().await?;
        let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no status: {status_line:?}")))?;
        let mut length = 0;
        loop {
            let line = self.line().await?;
            let Some((name, value)) = line.split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
            self.stays_open &= !(name.eq_ignore_ascii_case("connection") && value.trim() == "close");
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        Ok((status, body))
    }

    /// The body of a GET that is answered 200.
    pub async fn get(&mut self, path: &str) -> io::Result<Value> {
        let (status, body) = self.send("GET", path, "").await?;
        if status != 200 {
            return Err(io::Error::other(format!("GET {path}: {status}")));
        }
        serde_json::from_slice(&body).map_err(io::Error::other)
    }

    /// Whether another request may be sent.
    pub fn stays_open(&self) -> bool {
        self.stays_open
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}
