//! Generic netlink: messages of families whose numbers the kernel chooses, and the look-up of these numbers.

use netlink_packet_core::NetlinkSerializable;
use rustix::io::Errno;

use super::super::socket::{Attributes, Refusal, Socket};

/// The family that knows all others (`GENL_ID_CTRL` in linux/genetlink.h), and the lowest number of any.
const CONTROL: u16 = 0x10;

/// Asks for a family by its name (`CTRL_CMD_GETFAMILY`).
const GET_FAMILY: u8 = 3;

/// A family's number (`CTRL_ATTR_FAMILY_ID`).
const FAMILY_ID: u16 = 1;

/// A family's name (`CTRL_ATTR_FAMILY_NAME`).
const FAMILY_NAME: u16 = 2;

/// Bytes between the header of netlink and the attributes (`struct genlmsghdr`).
const HEADER: usize = 4;

/// A family that the kernel has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Family {
    id: u16,
    version: u8,
}

/// One message to a family.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Message {
    family: Family,
    command: u8,
    attributes: Vec<u8>,
}

impl Family {
    /// Finds a family by its name; none when the kernel has none of this name. Asking loads the module that has it.
    pub(super) fn find(
        socket: &mut Socket,
        name: &str,
        version: u8,
    ) -> Result<Option<Self>, Refusal> {
        let control = Self {
            id: CONTROL,
            version: 1,
        };
        let mut attributes = Vec::new();
        put(
            &mut attributes,
            FAMILY_NAME,
            &[name.as_bytes(), &[0]].concat(),
        );
        match socket.get(control.message(GET_FAMILY, attributes), |_, answer| {
            id_of(answer)
        }) {
            Err(refusal) if refusal.is(Errno::NOENT) => Ok(None),
            // A message to the number 0 would be none at all to the kernel, which says that it is done.
            Ok(None) => Err(Refusal::own("the kernel told no number of a family")),
            found => found.map(|id| id.map(|id| Self { id, version })),
        }
    }

    /// Makes one that no kernel told.
    #[cfg(test)]
    pub(super) fn of_test(id: u16, version: u8) -> Self {
        Self { id, version }
    }

    /// Makes a message to it.
    pub(super) fn message(self, command: u8, attributes: Vec<u8>) -> Message {
        Message {
            family: self,
            command,
            attributes,
        }
    }

    /// Returns the attributes of what it told; none when another told it.
    pub(super) fn attributes(self, kind: u16, payload: &[u8]) -> Option<Attributes<'_>> {
        let attributes = payload.get(HEADER..).filter(|_| kind == self.id)?;
        Some(Attributes(attributes))
    }
}

impl Message {
    /// Returns what it asks for.
    pub(super) fn command(&self) -> u8 {
        self.command
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.family.id
    }

    fn buffer_len(&self) -> usize {
        HEADER + self.attributes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let (header, attributes) = buffer.split_at_mut(HEADER);
        header.copy_from_slice(&[self.command, self.family.version, 0, 0]);
        attributes.copy_from_slice(&self.attributes);
    }
}

/// Writes an attribute behind others.
pub(super) fn put(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("what is written here is short");
    to.extend(length.to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

/// Finds the first attribute of a kind.
pub(super) fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let mut all = Attributes(attributes);
    all.find_map(|(found, value)| (found == kind).then_some(value))
}

fn id_of(answer: &[u8]) -> Option<u16> {
    let id = find(answer.get(HEADER..)?, FAMILY_ID)?;
    let id = u16::from_ne_bytes(*id.first_chunk()?);
    (id > CONTROL).then_some(id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn number_of_a_family_is_never_one_that_the_kernel_ignores() {
        let answer = |id: u16| {
            let mut bytes = vec![1, 2, 0, 0];
            put(&mut bytes, FAMILY_NAME, b"IPVS\0");
            put(&mut bytes, FAMILY_ID, &id.to_ne_bytes());
            bytes
        };
        assert_eq!(id_of(&answer(0x1d)), Some(0x1d));
        for id in [0, 1, CONTROL] {
            assert_eq!(id_of(&answer(id)), None);
        }
        assert_eq!(id_of(&[1, 2, 0, 0]), None);
    }

    #[test]
    fn families_that_are_there_are_told_from_those_that_are_not() {
        let mut socket = Socket::open_generic().unwrap();
        let control = Family::find(&mut socket, "nlctrl_", 1).unwrap();
        assert_eq!(control, None);
    }

    #[test]
    fn message_is_a_header_and_its_attributes() {
        let family = Family { id: 29, version: 1 };
        let mut attributes = Vec::new();
        put(&mut attributes, 7, &[1, 2]);
        assert_eq!(attributes.len(), 8);
        let message = family.message(4, attributes);
        let mut bytes = vec![9; message.buffer_len()];
        message.serialize(&mut bytes);
        assert_eq!(bytes[..4], [4, 1, 0, 0]);
        let mut read = family.attributes(29, &bytes).unwrap();
        assert_eq!(read.next(), Some((7, &[1, 2][..])));
        assert!(family.attributes(30, &bytes).is_none());
        assert!(family.attributes(29, &bytes[..3]).is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes: Vec<u8>) {
            id_of(&bytes);
            find(&bytes, 1);
        }
    }
}
