package wall_test

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"podwire.dev/internal/fabric/wall"
	"podwire.dev/internal/testnet"
)

// TestManyMembers: a transaction has no limit that a cluster could reach.
func TestManyMembers(t *testing.T) {
	ns := testnet.New(t).AddNS("dns-1")
	s := wall.State{Own: []netip.Addr{netip.MustParseAddr("10.244.0.1")}}
	for i := range uint32(20000) {
		v4 := binary.BigEndian.AppendUint32(nil, 172<<24|16<<16+i)
		v6 := append([]byte{0xfd, 15: 0}[:12], v4...)
		a, _ := netip.AddrFromSlice(v4)
		b, _ := netip.AddrFromSlice(v6)
		s.Members = append(s.Members, a, b)
	}
	w := wall.New(wall.Config{Link: "pwvx", Port: 8472, TCP: []uint16{53}})
	apply := func(want bool) {
		t.Helper()
		ns.Must(func() error {
			written, err := w.Apply(s)
			if written != want {
				t.Errorf("written: %t, want %t", written, want)
			}
			return err
		})
	}
	apply(true)
	apply(false)
	if list := ns.Run("nft", "list", "set", "inet", wall.TableName, "members6"); strings.Count(list, "fd00::") != 20000 {
		t.Errorf("%d members", strings.Count(list, "fd00::"))
	}
	s.Members = s.Members[:10]
	apply(true)
	if list := ns.Run("nft", "list", "set", "inet", wall.TableName, "members6"); strings.Count(list, "fd00::") != 5 {
		t.Errorf("after the others left: %s", list)
	}
}
