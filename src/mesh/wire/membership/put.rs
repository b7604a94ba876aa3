//! Packets as bytes, without a copy of what they hold: a busy node sends little else.
//!
//! Field numbers and types are those of `membership.proto`; tests hold both to each other.

use std::net::SocketAddr;

use bytes::BufMut;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use super::{ACCUSERS_MAX, status_to_wire};
use crate::mesh::{node::NodeName, swim::message::Update};

/// Number of the field `updates` of `Datagram`.
const UPDATES: u32 = 6;

/// Every field number here is below 16: the key of a field is one byte.
const KEY_BYTES: usize = 1;

/// Size of the whole field in a packet.
pub(super) fn update_len(update: &Update) -> usize {
    delimited_len(body_len(update))
}

/// Appends the whole field to a packet.
pub(super) fn update(update: &Update, to: &mut impl BufMut) {
    head(UPDATES, body_len(update), to);
    text(1, update.name.as_str(), to);
    number(2, status_to_wire(update.status) as u64, to);
    number(3, update.epoch_ms, to);
    number(4, update.incarnation, to);
    head(5, addr_len(update.addr), to);
    match update.addr {
        SocketAddr::V4(v4) => bytes(1, &v4.ip().octets(), to),
        SocketAddr::V6(v6) => bytes(1, &v6.ip().octets(), to),
    }
    number(2, update.addr.port().into(), to);
    text(6, &update.host, to);
    text(7, &update.zone, to);
    number(8, age_s(update), to);
    for accuser in accusers(update) {
        text(9, accuser.as_str(), to);
    }
}

fn body_len(update: &Update) -> usize {
    let accusers: usize = accusers(update).map(|name| text_len(name.as_str())).sum();
    text_len(update.name.as_str())
        + number_len(status_to_wire(update.status) as u64)
        + number_len(update.epoch_ms)
        + number_len(update.incarnation)
        + delimited_len(addr_len(update.addr))
        + text_len(&update.host)
        + text_len(&update.zone)
        + number_len(age_s(update))
        + accusers
}

fn accusers(update: &Update) -> impl Iterator<Item = &NodeName> {
    update.accusers.iter().take(ACCUSERS_MAX)
}

fn age_s(update: &Update) -> u64 {
    u32::try_from(update.age.as_secs()).unwrap_or(u32::MAX).into()
}

fn addr_len(addr: SocketAddr) -> usize {
    let ip = if addr.is_ipv4() { 4 } else { 16 };
    delimited_len(ip) + number_len(addr.port().into())
}

fn delimited_len(len: usize) -> usize {
    KEY_BYTES + encoded_len_varint(len as u64) + len
}

/// An empty text is left out.
pub(super) fn text_len(text: &str) -> usize {
    if text.is_empty() { 0 } else { delimited_len(text.len()) }
}

/// Zero is left out.
pub(super) fn number_len(number: u64) -> usize {
    if number == 0 { 0 } else { KEY_BYTES + encoded_len_varint(number) }
}

fn head(tag: u32, len: usize, to: &mut impl BufMut) {
    encode_key(tag, WireType::LengthDelimited, to);
    encode_varint(len as u64, to);
}

fn bytes(tag: u32, content: &[u8], to: &mut impl BufMut) {
    head(tag, content.len(), to);
    to.put_slice(content);
}

pub(super) fn text(tag: u32, content: &str, to: &mut impl BufMut) {
    if !content.is_empty() {
        bytes(tag, content.as_bytes(), to);
    }
}

pub(super) fn number(tag: u32, value: u64, to: &mut impl BufMut) {
    if value != 0 {
        encode_key(tag, WireType::Varint, to);
        encode_varint(value, to);
    }
}
