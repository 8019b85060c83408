package nodestate

import "crypto/sha256"

// TunnelMACOf is the MAC of the VXLAN device of a member: derived from its name, so that it survives a restart of the
// host and nobody has to be told of a new one; locally administered, unicast.
func TunnelMACOf(member string) [6]byte {
	sum := sha256.Sum256([]byte("podwire fabric member " + member))
	mac := [6]byte{0x02}
	copy(mac[1:], sum[:5])
	return mac
}
