// Package host holds the settings of the host that its pods need: forwarding, router advertisements in spite of it, and
// accepts in the firewalls of other programs, whose drop no accept of our own table overrides.
//
// In: the configuration, and what the host is like now (links, learned routers, other programs' chains). Out: the settings
// made, each listed with its wanted, its actual and its former value, and restored on request.
//
// Invariants: the former value of a setting is on disk, synced, before the setting is changed, so that a host that dies in
// between can still be restored. Rules are added only to chains that drop, match only links whose name begins with "pw" and
// the fabric's own UDP port, carry a comment that begins with [Mark], and have the form that iptables-nft gives its own
// rules, so that `iptables -S` goes on listing the chain. Nothing else in other programs' tables is changed. A second Apply
// writes nothing.
//
// dockerd, ufw and firewalld build their chains when they start, and firewalld builds them anew at each reload: call Apply
// again every few seconds.
//
// This package is the only writer of host-wide sysctls and of nftables rules in other programs' tables. It must not touch our
// own table, nor settings of pod links and of the VXLAN device, which their own packages make.
package host

import (
	"net/netip"
	"sort"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/fabric/rtnl"
)

// Config says what the settings depend on.
type Config struct {
	// Record is the file that keeps the values found before the first change, for Restore. Its directory exists.
	Record string
	// Underlay is the link of the underlay.
	Underlay string
	// TunnelPort is the UDP port of the fabric, let in on the underlay through firewalls that drop, from TunnelPeers. No
	// peers: nothing is let in. One rule is made per prefix, so give the underlay's prefixes rather than each member.
	TunnelPort  uint16
	TunnelPeers []netip.Prefix
}

// State is one setting as `podwire status` shows it.
type State struct {
	// Name is the sysctl's path below /proc/sys, or "<family> <table> <chain>: <comment of our rule>".
	Name string
	// Wanted and Actual are values; "present" and "absent" for rules.
	Wanted, Actual string
	// Before is the value before the first change; "" where nothing was changed.
	Before string
	// Advice says what to do where Apply cannot make Actual as Wanted; mostly empty.
	Advice string
}

// OK says whether the setting is as it should be.
func (s State) OK() bool { return s.Wanted == s.Actual }

// Host is the door to the settings of one network namespace: its methods are called on threads of the namespace that it was
// opened in, and not at the same time.
type Host struct {
	cfg  Config
	conn *rtnl.Conn
}

// Open opens the door in the network namespace of the calling thread. It changes nothing.
func Open(cfg Config) (*Host, error) {
	var bad []errs.Violation
	if cfg.Record == "" {
		bad = append(bad, errs.Violation{Field: "record", Rule: "must name a file"})
	}
	if cfg.Underlay == "" {
		bad = append(bad, errs.Violation{Field: "underlay", Rule: "must name the underlay's link"})
	}
	for _, p := range cfg.TunnelPeers {
		if !p.IsValid() || p != p.Masked() {
			bad = append(bad, errs.Violation{Field: "tunnelPeers", Value: p.String(), Rule: "must be a prefix"})
		}
	}
	if len(cfg.TunnelPeers) > 0 && cfg.TunnelPort == 0 {
		bad = append(bad, errs.Violation{Field: "tunnelPort", Rule: "must be set where tunnelPeers is"})
	}
	if err := errs.InvalidFields("host settings", bad); err != nil {
		return nil, err
	}
	conn, err := rtnl.Open()
	if err != nil {
		return nil, errs.Wrap(err, "host settings")
	}
	return &Host{cfg: cfg, conn: conn}, nil
}

// Close frees the descriptors; settings stay.
func (h *Host) Close() { h.conn.Close() }

// Apply makes every setting as wanted and returns the number of writes.
func (h *Host) Apply() (int, error) {
	writes, err := h.applySysctls()
	if err != nil {
		return writes, errs.Wrap(err, "host settings")
	}
	fw, err := readFirewall()
	if err != nil {
		return writes, errs.Wrap(err, "host settings")
	}
	n, err := fw.apply(h.cfg)
	return writes + n, errs.Wrap(err, "host settings")
}

// Check reads every setting and changes nothing. The list is sorted by name.
func (h *Host) Check() ([]State, error) {
	states, err := h.checkSysctls()
	if err != nil {
		return nil, errs.Wrap(err, "host settings")
	}
	fw, err := readFirewall()
	if err != nil {
		return nil, errs.Wrap(err, "host settings")
	}
	rules, err := fw.check(h.cfg)
	if err != nil {
		return nil, errs.Wrap(err, "host settings")
	}
	legacy, err := checkLegacy()
	if err != nil {
		return nil, errs.Wrap(err, "host settings")
	}
	states = append(append(states, rules...), legacy...)
	sort.Slice(states, func(i, j int) bool { return states[i].Name < states[j].Name })
	return states, nil
}

// Restore gives every setting the value it had before the first change, takes our rules away, and removes the record. A
// setting that somebody else changed since is given its former value too. Nothing to restore is no error.
func (h *Host) Restore() error {
	fw, err := readFirewall()
	if err != nil {
		return errs.Wrap(err, "host settings: restore")
	}
	if err := fw.removeOurs(); err != nil {
		return errs.Wrap(err, "host settings: restore")
	}
	return errs.Wrap(h.restoreSysctls(), "host settings: restore")
}
