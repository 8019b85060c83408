package runtime

import (
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"podwire.dev/services/nodeagent/internal/runtime/podspec"
)

// wire joins two sandboxes by a veth pair with one address of each family.
func wire(t *testing.T, paths [2]string, addresses [2][]string) {
	t.Helper()
	var handles [2]*netlink.Handle
	var files [2]*os.File
	for i, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
		if handles[i], err = netlink.NewHandleAt(netns.NsHandle(f.Fd())); err != nil {
			t.Fatal(err)
		}
		defer handles[i].Close()
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	if err := handles[0].LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(files[1].Fd())}); err != nil {
		t.Fatal(err)
	}
	for i, h := range handles {
		link, err := h.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range addresses[i] {
			a, err := netlink.ParseAddr(text)
			if err != nil {
				t.Fatal(err)
			}
			a.Flags = 0x02 // IFA_F_NODAD
			if err := h.AddrAdd(link, a); err != nil {
				t.Fatal(err)
			}
		}
		if err := h.LinkSetUp(link); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPodReachesPodAndTheToolTellsWhatHappened(t *testing.T) {
	n := newNode(t, t.TempDir(), nil)
	pods := [2]podspec.Pod{echoPod("one"), echoPod("two")}
	var paths [2]string
	for i, p := range pods {
		box, err := n.CreateSandbox(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		paths[i] = box.NetNS
	}
	wire(t, paths, [2][]string{{"192.0.2.1/24", "2001:db8::1/64"}, {"192.0.2.2/24", "2001:db8::2/64"}})
	for _, p := range pods {
		if err := n.StartContainers(t.Context(), p, loopback); err != nil {
			t.Fatal(err)
		}
		n.until(p.UID, "running", running)
	}
	for _, c := range []struct {
		args string
		code int
		out  string
	}{
		{"tcp 192.0.2.2:8080", 0, "two 192.0.2.1\n"},
		{"tcp [2001:db8::2]:8080", 0, "two 2001:db8::1\n"},
		{"udp 192.0.2.2:53", 0, "two 192.0.2.1\n"},
		{"udp [2001:db8::2]:53", 0, "two 2001:db8::1\n"},
		{"tcp 192.0.2.2:81", 1, ""},
		{"udp [2001:db8::2]:81", 1, ""},
		{"tcp 192.0.2.2:8080 --from 192.0.2.77 --timeout 200ms", 2, ""},
		{"udp [2001:db8::2]:53 --from 2001:db8::77 --timeout 200ms", 2, ""},
		{"tcp 192.0.2.9:80 --timeout 200ms", 2, ""},
	} {
		code, out := n.exec("one-uid", append([]string{"probe"}, strings.Fields(c.args)...)...)
		answer, _, _ := strings.Cut(out, "probe:")
		if code != c.code || answer != c.out {
			t.Errorf("%s: exit %d, %q; want %d, %q", c.args, code, out, c.code, c.out)
		}
	}
}
