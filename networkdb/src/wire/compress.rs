//! Frames of streams are compressed when that makes them smaller: names, times and values of small tables are alike.

use bytes::Bytes;
use prost::Message as _;

use super::convert::pack;
use super::frame::FRAME_BYTES_MAX;
use super::proto::{self, MessageType};
use super::{Decoded, decode};

/// Frames below this are sent as they are.
const COMPRESS_FROM: usize = 512;

/// How a message begins that is compressed already: the tag of its type, and the type.
const COMPRESSED_HEAD: [u8; 2] = [8, 110];

/// Compresses a gossip message for a stream, if that saves an eighth.
#[must_use]
pub fn compressed(message: Bytes) -> Bytes {
    if message.len() < COMPRESS_FROM || message.starts_with(&COMPRESSED_HEAD) {
        return message;
    }
    let lz4 = lz4_flex::block::compress(&message);
    if lz4.len() + lz4.len() / 8 > message.len() {
        return message;
    }
    let size = u32::try_from(message.len()).expect("a frame is below 4 GiB");
    let lz4 = lz4.into();
    pack(MessageType::Compressed, &proto::Compressed { size, lz4 })
}

/// Decodes a frame of a stream: a gossip message that may be compressed, though only once.
#[must_use]
pub fn decode_frame(bytes: Bytes) -> Decoded {
    match proto::GossipMessage::decode(bytes.clone()) {
        Ok(message) if message.r#type == MessageType::Compressed as i32 => {
            match decompressed(message.data) {
                Some(message) => decode(message),
                None => Decoded {
                    malformed: 1,
                    ..Decoded::default()
                },
            }
        }
        Ok(_) | Err(_) => decode(bytes),
    }
}

fn decompressed(data: Bytes) -> Option<Bytes> {
    let compressed = proto::Compressed::decode(data).ok()?;
    let size = usize::try_from(compressed.size).ok()?;
    if size > FRAME_BYTES_MAX {
        return None;
    }
    let message = lz4_flex::block::decompress(&compressed.lz4, size).ok()?;
    (message.len() == size).then(|| message.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Message;
    use super::*;
    use crate::id::NetworkId;

    fn end() -> Message {
        Message::SyncEnd {
            network: NetworkId::new("n".repeat(255)).unwrap(),
        }
    }

    #[test]
    fn what_is_alike_is_sent_in_fewer_bytes_and_comes_out_again() {
        let many = super::super::compound(vec![end().encode(); 40]);
        let sent = compressed(many.clone());
        assert!(sent.len() < many.len() / 10, "{} bytes", sent.len());
        assert!(sent.starts_with(&COMPRESSED_HEAD));
        assert_eq!(compressed(sent.clone()), sent);
        let decoded = decode_frame(sent);
        assert_eq!((decoded.unknown, decoded.malformed), (0, 0));
        assert_eq!(decoded.messages, vec![end(); 40]);
    }

    #[test]
    fn small_messages_are_sent_as_they_are() {
        let message = end().encode();
        assert_eq!(compressed(message.clone()), message);
        assert_eq!(decode_frame(message).messages, [end()]);
    }

    #[test]
    fn a_bomb_is_refused_before_room_is_made_for_it() {
        let lz4 = lz4_flex::block::compress(&vec![0; 1 << 20]).into();
        let bomb = proto::Compressed {
            size: u32::MAX,
            lz4,
        };
        let decoded = decode_frame(pack(MessageType::Compressed, &bomb));
        assert_eq!((decoded.malformed, decoded.messages.len()), (1, 0));
    }

    #[test]
    fn compressed_twice_or_in_a_datagram_is_malformed() {
        let many = super::super::compound(vec![end().encode(); 40]);
        let once = compressed(many);
        assert_eq!(decode(once.clone()).malformed, 1);
        let twice = proto::Compressed {
            size: u32::try_from(once.len()).unwrap(),
            lz4: lz4_flex::block::compress(&once).into(),
        };
        let decoded = decode_frame(pack(MessageType::Compressed, &twice));
        assert_eq!((decoded.malformed, decoded.messages.len()), (1, 0));
    }

    proptest! {
        #[test]
        fn no_bytes_can_panic_the_decompressor(
            size in any::<u32>(),
            lz4 in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let lz4 = lz4.into();
            let message = proto::Compressed { size, lz4 };
            let decoded = decode_frame(pack(MessageType::Compressed, &message));
            prop_assert!(decoded.messages.is_empty() || decoded.malformed == 0);
        }
    }
}
