package app

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"time"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/resolvconf"
	"podwire.dev/services/dns/internal/forward"
	"podwire.dev/services/dns/internal/zone"
)

// publish takes a new View.
func (s *sockets) publish(v *zone.View) {
	s.resolver.Publish(v)
	s.once.Do(func() { close(s.planned) })
}

// own says whether asking a server would be asking this service: on an address of its own, or by Service
// kube-system/kube-dns.
func (s *sockets) own(a netip.AddrPort) bool {
	a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	s.running.mu.Lock()
	defer s.running.mu.Unlock()
	if slices.Contains(s.running.bound, a) {
		return true
	}
	v := s.resolver.View()
	return a.Port() == dnsPort && v != nil && v.Serves(a.Addr())
}

// resolvFile keeps the upstream servers as a resolv.conf has them.
type resolvFile struct {
	path      string
	forwarder *forward.Forwarder
	log       *slog.Logger
	held      []byte
}

const (
	// resolvPeriod is how often the file is looked at: a host's servers change with its network, seldom.
	resolvPeriod = 5 * time.Second
	maxResolv    = 64 << 10
)

// run reads the file again and again, until ctx ends. A file that cannot be read leaves the servers as they are.
func (f *resolvFile) run(ctx context.Context) error {
	tick := time.NewTicker(resolvPeriod)
	defer tick.Stop()
	said := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := f.read()
		if err != nil && !said {
			f.log.Warn("the upstream servers stay as they are", "error", err)
		}
		said = err != nil
	}
}

// read takes the servers of the file, if it has changed.
func (f *resolvFile) read() error {
	in, err := os.Open(f.path)
	if err != nil {
		return errs.WrapAs(errs.NotFound, err, "forward.resolvConf")
	}
	defer func() { _ = in.Close() }()
	text, err := io.ReadAll(io.LimitReader(in, maxResolv))
	if err != nil {
		return errs.WrapAs(errs.Unavailable, err, "forward.resolvConf %s", f.path)
	}
	if f.held != nil && bytes.Equal(text, f.held) {
		return nil
	}
	f.held = text
	var servers []netip.AddrPort
	for _, a := range resolvconf.Parse(string(text)).Nameservers {
		servers = append(servers, netip.AddrPortFrom(a, dnsPort))
	}
	f.forwarder.SetUpstreams(servers)
	f.log.Info("upstream servers", "file", f.path, "servers", servers)
	return nil
}
