package app

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/fabric"
	"podwire.dev/services/nodeagent/internal/kernel/announce"
	"podwire.dev/services/nodeagent/internal/kernel/ct"
	"podwire.dev/services/nodeagent/internal/kernel/host"
	"podwire.dev/services/nodeagent/internal/kernel/link"
	"podwire.dev/services/nodeagent/internal/kernel/nft"
	"podwire.dev/services/nodeagent/internal/runtime"
)

// kernel are the doors to the kernel, all in the network namespace of this process.
type kernel struct {
	rules     *nft.Table
	fabric    *fabric.Fabric
	device    fabric.Device
	links     *link.Links
	host      *host.Host
	announcer *announce.Announcer
	flows     *ct.Table
}

// The files of the state directory. Journals and the pods' directories are their packages' own.
const (
	fileHost      = "host-settings.json"
	fileIDs       = "ids"
	fileAddresses = "addresses.json"
	fileYielded   = "yielded.json"
	dirJournals   = "journals"
	dirPods       = "pods"
	dirRuntime    = "runtime"
)

// openKernel opens every door. It makes the fabric's device, whose MTU pods get, and changes nothing else.
func openKernel(s settings) (k *kernel, err error) {
	k = &kernel{}
	defer func() {
		if err != nil {
			k.close()
			k = nil
		}
	}()
	if k.fabric, err = fabric.Open(fabric.Config{Self: s.Node, Underlay: s.underlay[0], Port: s.VXLANPort}); err != nil {
		return k, err
	}
	if k.device, err = k.fabric.EnsureDevice(); err != nil {
		return k, err
	}
	if k.rules, err = nft.Open(0); err != nil {
		return k, err
	}
	if k.links, err = link.Open(); err != nil {
		return k, err
	}
	underlay := k.device.Underlay.Link
	peers := s.tunnelPeers
	if len(peers) == 0 {
		if peers, err = prefixOf(underlay, s.underlay[0]); err != nil {
			return k, err
		}
	}
	k.host, err = host.Open(host.Config{
		Record: filepath.Join(s.State, fileHost), Underlay: underlay, TunnelPort: s.VXLANPort, TunnelPeers: peers,
	})
	if err != nil {
		return k, err
	}
	yielded, err := readYielded(filepath.Join(s.State, fileYielded))
	if err != nil {
		return k, err
	}
	if k.announcer, err = announce.Open(announce.Config{Link: underlay, Yielded: yielded}); err != nil {
		return k, err
	}
	k.flows, err = ct.Open(0)
	return k, err
}

// doors are the kernel's, and the driver that runs containers as processes.
func (k *kernel) doors() Doors {
	return Doors{
		Rules: k.rules, Fabric: k.fabric, Flows: ct.New(k.flows), Links: k.links, Host: k.host, Announcer: k.announcer,
		MTU: k.device.MTU, Addresses: nodeAddresses,
		Runtime: func(cfg runtime.Config) (runtime.Driver, error) { return runtime.NewProcess(cfg) },
	}
}

// close frees the descriptors; the kernel keeps everything.
func (k *kernel) close() {
	if k.flows != nil {
		_ = k.flows.Close()
	}
	if k.announcer != nil {
		_ = k.announcer.Close()
	}
	if k.host != nil {
		k.host.Close()
	}
	if k.links != nil {
		k.links.Close()
	}
	if k.rules != nil {
		_ = k.rules.Close()
	}
	if k.fabric != nil {
		k.fabric.Close()
	}
}

// prefixOf is the prefix of an address of a link.
func prefixOf(name string, a netip.Addr) ([]netip.Prefix, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return nil, errs.WrapAs(errs.Unavailable, err, "underlay link %s", name)
	}
	list, err := ifi.Addrs()
	if err != nil {
		return nil, errs.WrapAs(errs.Unavailable, err, "addresses of underlay link %s", name)
	}
	for _, x := range list {
		if p, err := netip.ParsePrefix(x.String()); err == nil && p.Addr().Unmap() == a {
			return []netip.Prefix{netip.PrefixFrom(a, p.Bits()).Masked()}, nil
		}
	}
	return nil, errs.New(errs.NotFound, "link %s has lost the underlay address %s", name, a)
}

// nodeAddresses are the addresses on which the node serves node ports: all of its own but those of loopback and our
// links, link-local ones, and announced load balancer addresses.
func nodeAddresses(announced []netip.Addr) ([]netip.Addr, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, errs.WrapAs(errs.Unavailable, err, "links of the node")
	}
	var out []netip.Addr
	for _, l := range links {
		if l.Flags&net.FlagLoopback != 0 || l.Flags&net.FlagUp == 0 || strings.HasPrefix(l.Name, "pw") {
			continue
		}
		list, err := l.Addrs()
		if err != nil {
			continue // the link went away meanwhile
		}
		for _, x := range list {
			p, err := netip.ParsePrefix(x.String())
			if err != nil {
				continue
			}
			a := p.Addr().Unmap()
			if !a.IsLoopback() && !a.IsLinkLocalUnicast() && !slices.Contains(announced, a) {
				out = append(out, a)
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out), nil
}

// lookEvery is how often the host is looked at: its settings, which other programs change, and its addresses.
const lookEvery = 5 * time.Second

// watchAnnouncements gives up addresses that other nodes announce, and keeps on disk that it did, until ctx ends.
func watchAnnouncements(ctx context.Context, announcer Announcer, path string, log *slog.Logger) error {
	for {
		err := announcer.Watch(ctx, func(c announce.Claim) {
			log.Warn("another node announces an address that was held here; it is given up",
				"address", c.Address.String(), "by", net.HardwareAddr(c.By[:]).String(), "epoch", c.Epoch)
			if err := writeYielded(path, announcer.Yielded()); err != nil {
				log.Error("that an address was given up is not on disk", "address", c.Address.String(), "error", err)
			}
		})
		if ctx.Err() != nil {
			return nil
		}
		log.Error("announcements of other nodes are not heard, trying again", "error", err)
		timer := time.NewTimer(lookEvery)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

func readYielded(path string) (map[netip.Addr]int64, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "yielded addresses")
	}
	var out map[netip.Addr]int64
	if err := json.Unmarshal(raw, &out); err != nil {
		return nil, errs.WrapAs(errs.Invalid, err, "%s is damaged; remove it: an address that another node took may then be taken back once", path)
	}
	return out, nil
}

func writeYielded(path string, yielded map[netip.Addr]int64) error {
	raw, err := json.Marshal(yielded)
	if err != nil {
		return errs.WrapAs(errs.Internal, err, "yielded addresses")
	}
	if err := os.WriteFile(path+".new", raw, 0o600); err != nil {
		return errs.WrapAs(errs.Unavailable, err, "yielded addresses")
	}
	return errs.WrapAs(errs.Unavailable, os.Rename(path+".new", path), "yielded addresses")
}
