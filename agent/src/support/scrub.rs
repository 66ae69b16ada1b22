//! The last thing that every text passes on its way into the archive: whatever could be a key goes.
//!
//! The kernel and its tools print keys of IPsec and of TCP Fast Open, and the secrets of stable IPv6 addresses. Whoever
//! reads an archive needs none of them.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

/// What stands where a secret was.
const REMOVED: &str = "<removed>";

/// Hex digits of a number that may stay where keys are printed: SPIs, marks and masks have eight.
const NUMBER_DIGITS_MAX: usize = 8;

/// Words that begin a line of `ip xfrm state` with a key in it.
const KEY_WORDS: [&str; 5] = ["auth", "auth-trunc", "enc", "aead", "comp"];

/// Removes keys from texts.
#[derive(Debug, Default)]
pub(super) struct Scrubber {
    /// Secrets that are known, in every form that they could be printed in.
    known: Vec<String>,
}

impl Scrubber {
    /// Also removes a secret that is known, as it is and in hex and base64.
    pub(super) fn remove(&mut self, secret: &str) {
        // What is this short would be found everywhere.
        if secret.len() < 8 {
            return;
        }
        let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.known.extend([
            secret.to_owned(),
            hex.to_uppercase(),
            hex,
            STANDARD_NO_PAD.encode(secret),
            STANDARD.encode(secret),
        ]);
    }

    /// Returns the text without keys.
    pub(super) fn scrub(&self, text: &str) -> String {
        let mut clean = String::with_capacity(text.len());
        let mut is_xfrm = false;
        for line in text.split_inclusive('\n') {
            // The records of `ip xfrm` begin like this; so does the command above them.
            let is_command = line.starts_with("$ ") && line.contains("xfrm");
            is_xfrm = is_xfrm || is_command || line.trim_start().starts_with("proto esp");
            push_clean(&mut clean, line, is_xfrm);
        }
        for secret in &self.known {
            if clean.contains(secret) {
                clean = clean.replace(secret, REMOVED);
            }
        }
        clean
    }
}

/// Adds a line without its keys.
fn push_clean(clean: &mut String, line: &str, is_xfrm: bool) {
    let first = line.split_whitespace().next().unwrap_or_default();
    let has_key = KEY_WORDS.contains(&first);
    if has_key || is_xfrm {
        push_without_hex(clean, line, if has_key { 0 } else { NUMBER_DIGITS_MAX });
        return;
    }
    // `net.ipv4.tcp_fastopen_key = ...`, `net.ipv6.conf.eth0.stable_secret = ...`; `private key: ...` of WireGuard; and what
    // somebody gave the kernel at boot.
    let separator = line.find([':', '=']);
    let name = separator.map_or("", |at| &line[..at]).trim();
    let is_word = !name.contains(char::is_whitespace);
    let is_sysctl = is_word && (name.ends_with("_key") || name.ends_with("_secret"));
    let is_wireguard = ["private key", "preshared key"].contains(&name);
    let is_boot = name.to_ascii_lowercase().ends_with("command line");
    match separator {
        Some(at) if is_sysctl || is_wireguard || is_boot => {
            clean.push_str(&line[..=at]);
            clean.push(' ');
            clean.push_str(REMOVED);
            clean.push('\n');
        }
        Some(_) | None => clean.push_str(line),
    }
}

/// Adds a line without runs of `0x` and more than so many hex digits.
fn push_without_hex(clean: &mut String, line: &str, digits_max: usize) {
    let mut rest = line;
    while let Some(at) = rest.find("0x") {
        let (before, run) = rest.split_at(at + 2);
        let digits = run.bytes().take_while(u8::is_ascii_hexdigit).count();
        clean.push_str(before);
        clean.push_str(if digits > digits_max {
            REMOVED
        } else {
            &run[..digits]
        });
        rest = &run[digits..];
    }
    clean.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `ip xfrm state` prints it.
    const XFRM: &str = "\
$ ip xfrm state
src 192.0.2.1 dst 192.0.2.2
\tproto esp spi 0x0a0b0c0d reqid 13681891 mode transport
\treplay-window 0 
\taead rfc4106(gcm(aes)) 0x303132333435363738396162636465660a0b0c0d 64
\tanti-replay context: seq 0x0, oseq 0x2a, bitmap 0x00000000
\tmark 0xd0c4e3/0xffffffff 
src 192.0.2.2 dst 192.0.2.1
\tproto esp spi 0x00000301 reqid 13681891 mode transport
\tauth-trunc hmac(sha256) 0x00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff 128
\tauth hmac(md5) 0xdeadbeef
\tenc cbc(des) 0x0123456789abcdef
\tsel src 0.0.0.0/0 dst 0.0.0.0/0 
\tlastused 0x112233445566778899
";

    #[test]
    fn keys_of_ipsec_go_and_the_rest_stays() {
        let clean = Scrubber::default().scrub(XFRM);
        for key in [
            "3031323334",
            "0a0b0c0d 64",
            "0011223344",
            "deadbeef",
            "0123456789abcdef",
            "112233445566778899",
        ] {
            assert!(!clean.contains(key), "{key} in {clean}");
        }
        for kept in [
            "spi 0x0a0b0c0d reqid 13681891",
            "aead rfc4106(gcm(aes)) 0x<removed> 64",
            "oseq 0x2a, bitmap 0x00000000",
            "mark 0xd0c4e3/0xffffffff",
        ] {
            assert!(clean.contains(kept), "{kept} not in {clean}");
        }
        // Without the line of the command too.
        let (_, alone) = XFRM.split_once('\n').unwrap();
        assert!(!Scrubber::default().scrub(alone).contains("303132"));
    }

    #[test]
    fn secrets_of_sysctl_wireguard_and_boot_go() {
        let text = "net.ipv4.tcp_fastopen_key = 01234567-89abcdef-01234567-89abcdef\n\
            net.ipv6.conf.eth0.stable_secret = 2001:db8::1\n\
            net.ipv4.tcp_fastopen_blackhole_timeout_sec = 0\n\
            \x20 private key: aGVsbG8=\npublic key: cHVibGlj\n\
            [    0.000000] Command line: root=/dev/vda token=12345678\n";
        let clean = Scrubber::default().scrub(text);
        assert_eq!(
            clean,
            "net.ipv4.tcp_fastopen_key = <removed>\n\
            net.ipv6.conf.eth0.stable_secret = <removed>\n\
            net.ipv4.tcp_fastopen_blackhole_timeout_sec = 0\n\
            \x20 private key: <removed>\npublic key: cHVibGlj\n\
            [    0.000000] Command line: <removed>\n"
        );
    }

    #[test]
    fn known_secrets_go_in_every_form() {
        let mut scrubber = Scrubber::default();
        scrubber.remove("token-0123456789");
        let forms = [
            "token-0123456789".to_owned(),
            "746f6b656e2d30313233343536373839".to_owned(),
            "746F6B656E2D30313233343536373839".to_owned(),
            STANDARD.encode("token-0123456789"),
        ];
        for form in forms {
            let clean = scrubber.scrub(&format!("a {form} b"));
            assert!(!clean.contains(&form), "{clean}");
            assert!(clean.starts_with("a <removed>"), "{clean}");
        }
    }

    #[test]
    fn other_texts_stay_as_they_are() {
        for text in [
            "",
            "no line end",
            "a\n\nb\n",
            "ip saddr 0x20010db800000000 accept\n",
            "-A secret-chain -m comment --comment \"a: b\"\n",
            "  \"key-file\": \"/etc/networkdb/gossip.key\"\n",
        ] {
            assert_eq!(Scrubber::default().scrub(text), text);
        }
    }
}
