//! The two ECN bits of an IP packet (RFC 3168): what the sender can understand, and that a queue was long.

/// Not-ECT 0, ECT(1) 1, ECT(0) 2, Congestion Experienced 3.
const EXPERIENCED: u8 = 3;

/// The ECN bits; `None` when this is no IP packet.
fn bits(packet: &[u8]) -> Option<u8> {
    match (packet.first()? >> 4, packet.get(1)?) {
        (4, service) if packet.len() >= 20 => Some(service & EXPERIENCED),
        (6, class) if packet.len() >= 40 => Some((class >> 4) & EXPERIENCED),
        _ => None,
    }
}

/// Whether both ends of this packet's flow understand marks.
pub(super) fn ecn_capable(packet: &[u8]) -> bool {
    bits(packet).is_some_and(|bits| bits != 0)
}

/// Sets Congestion Experienced in a packet that is ECN capable, and keeps the checksum of an IPv4 header right.
pub(super) fn mark(packet: &mut [u8]) {
    if !ecn_capable(packet) {
        return;
    }
    if packet[0] >> 4 == 6 {
        packet[1] |= EXPERIENCED << 4;
        return;
    }
    let before = u16::from_be_bytes([packet[0], packet[1]]);
    packet[1] |= EXPERIENCED;
    let after = u16::from_be_bytes([packet[0], packet[1]]);
    // One's complement sums can be corrected by the word that changed (RFC 1624, equation 3).
    let checksum = u16::from_be_bytes([packet[10], packet[11]]);
    let mut sum = u32::from(!checksum) + u32::from(!before) + u32::from(after);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sum over an IPv4 header; 0xffff when its checksum is right.
    fn sum(header: &[u8]) -> u16 {
        let mut sum: u32 = header.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    fn ipv4(service: u8, id: u16) -> [u8; 20] {
        let mut header = [0x45, service, 0, 20, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2];
        header[4..6].copy_from_slice(&id.to_be_bytes());
        let checksum = !sum(&header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        header
    }

    #[test]
    fn a_marked_header_keeps_a_right_checksum() {
        for service in [0x01, 0x02, 0x03, 0xb9, 0xfe] {
            for id in 0..=u16::MAX {
                let mut header = ipv4(service, id);
                mark(&mut header);
                assert_eq!(header[1], service | 3);
                assert_eq!(sum(&header), 0xffff, "service {service:#x} id {id}");
            }
        }
    }

    #[test]
    fn packets_that_do_not_understand_marks_stay_as_they_are() {
        let mut header = ipv4(0xb8, 1);
        assert!(!ecn_capable(&header));
        mark(&mut header);
        assert_eq!(header, ipv4(0xb8, 1));
        for odd in [&[][..], &[0x45][..], &[0x45, 2, 0][..], &[0x00; 40][..]] {
            assert!(!ecn_capable(odd));
            mark(&mut odd.to_vec());
        }
    }

    #[test]
    fn ipv6_is_marked_in_its_traffic_class() {
        let mut header = [0; 40];
        header[..2].copy_from_slice(&[0x60, 0x2f]);
        assert!(ecn_capable(&header));
        mark(&mut header);
        assert_eq!(header[..2], [0x60, 0x3f]);
    }
}
