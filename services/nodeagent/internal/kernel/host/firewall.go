package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"podwire.dev/internal/errs"
)

// Mark begins the comment of each of our rules in other programs' chains.
const Mark = "podwire:"

// ownTable is our table, in which this package has no business.
const ownTable = "podwire"

// linkPrefix begins the names of all our links, and of none that is not ours.
const linkPrefix = "pw"

// firewall is a view of other programs' chains, with their rules read as they are needed.
type firewall struct {
	conn   *nftables.Conn
	chains []*nftables.Chain
	rules  map[*nftables.Chain][]*nftables.Rule
}

func readFirewall() (*firewall, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "open nftables")
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "list nftables chains")
	}
	fw := &firewall{conn: conn, rules: map[*nftables.Chain][]*nftables.Rule{}}
	// Only tables that filter forwarded or incoming packets: the others may hold thousands of rules that do not concern us.
	type table struct {
		family nftables.TableFamily
		name   string
	}
	filters := map[table]bool{}
	for _, c := range chains {
		if filtersPackets(c) {
			filters[table{c.Table.Family, c.Table.Name}] = true
		}
	}
	for _, c := range chains {
		if filters[table{c.Table.Family, c.Table.Name}] {
			fw.chains = append(fw.chains, c)
		}
	}
	return fw, nil
}

// filtersPackets says whether a chain is another program's base chain that filters IP packets, forwarded or incoming.
func filtersPackets(c *nftables.Chain) bool {
	if c.Hooknum == nil || c.Type != nftables.ChainTypeFilter || c.Table.Name == ownTable {
		return false
	}
	switch c.Table.Family {
	case nftables.TableFamilyIPv4, nftables.TableFamilyIPv6, nftables.TableFamilyINet:
		return *c.Hooknum == *nftables.ChainHookForward || *c.Hooknum == *nftables.ChainHookInput
	}
	return false
}

func (fw *firewall) rulesOf(c *nftables.Chain) ([]*nftables.Rule, error) {
	if rules, ok := fw.rules[c]; ok {
		return rules, nil
	}
	rules, err := fw.conn.GetRules(c.Table, c)
	if errors.Is(err, unix.ENOENT) {
		err = nil // the chain went away since it was listed
	}
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "list rules of %s", nameOf(c))
	}
	fw.rules[c] = rules
	return rules, nil
}

// nameOf is "<family> <table> <chain>", as nft has it.
func nameOf(c *nftables.Chain) string {
	family := map[nftables.TableFamily]string{
		nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
	}[c.Table.Family]
	return family + " " + c.Table.Name + " " + c.Name
}

// reach is what a packet may meet below a base chain.
type reach struct {
	drops  bool
	chains map[string]*nftables.Chain
}

// follow walks the jumps from a chain.
func (fw *firewall) follow(c *nftables.Chain, r *reach) error {
	if _, seen := r.chains[c.Name]; seen {
		return nil
	}
	r.chains[c.Name] = c
	rules, err := fw.rulesOf(c)
	if err != nil {
		return err
	}
	for _, rule := range rules {
		for _, e := range rule.Exprs {
			to := ""
			switch e := e.(type) {
			case *expr.Reject:
				r.drops = true
			case *expr.Target: // of iptables-nft, where it has no expression of nftables' own
				r.drops = r.drops || e.Name == "REJECT" || e.Name == "DROP"
			case *expr.Verdict:
				r.drops = r.drops || e.Kind == expr.VerdictDrop
				to = e.Chain
			}
			if next := fw.chain(c.Table, to); to != "" && next != nil {
				if err := fw.follow(next, r); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (fw *firewall) chain(t *nftables.Table, name string) *nftables.Chain {
	for _, c := range fw.chains {
		if c.Name == name && c.Table.Name == t.Name && c.Table.Family == t.Family {
			return c
		}
	}
	return nil
}

// Chains that other programs keep for rules like ours, in the order of preference. Rules of the operator in them are looked
// at first: ours go to their end.
var (
	forwardChains = []string{"DOCKER-USER", "ufw-user-forward", "ufw6-user-forward"}
	inputChains   = []string{"ufw-user-input", "ufw6-user-input"}
)

// place is a chain in which rules of ours belong.
type place struct {
	chain *nftables.Chain
	// first says that the chain is a base chain, where ours go before all others, since the last of them may reject.
	first bool
	rules []rule
}

// rule is one rule of ours: its comment, which names it, and what it matches.
type rule struct {
	comment string
	match   []expr.Any
}

// places returns where our rules belong: for each base chain that drops, the chain that its program keeps for it, or itself.
func (fw *firewall) places(cfg Config) ([]place, error) {
	var places []place
	for _, base := range fw.chains {
		if !filtersPackets(base) {
			continue
		}
		var rules []rule
		var kept []string
		switch *base.Hooknum {
		case *nftables.ChainHookForward:
			rules, kept = forwardRules(), forwardChains
		case *nftables.ChainHookInput:
			rules, kept = tunnelRules(cfg, base.Table.Family), inputChains
		}
		if len(rules) == 0 {
			continue
		}
		r := reach{chains: map[string]*nftables.Chain{}, drops: base.Policy != nil && *base.Policy == nftables.ChainPolicyDrop}
		if err := fw.follow(base, &r); err != nil {
			return nil, err
		}
		if !r.drops {
			continue
		}
		p := place{chain: base, first: true, rules: rules}
		for i := len(kept) - 1; i >= 0; i-- {
			if c, ok := r.chains[kept[i]]; ok {
				p.chain, p.first = c, false
			}
		}
		places = append(places, p)
	}
	return places, nil
}

// commentOf is the comment of a rule of ours; "" for others'.
func commentOf(r *nftables.Rule) string {
	comment, ok := userdata.GetString(r.UserData, userdata.TypeComment)
	if !ok || !strings.HasPrefix(comment, Mark) {
		return ""
	}
	return comment
}

// apply adds what is missing and removes what is ours and not wanted, in one transaction, and returns the number of rules
// added and removed.
func (fw *firewall) apply(cfg Config) (int, error) {
	places, err := fw.places(cfg)
	if err != nil {
		return 0, err
	}
	writes := 0
	keep := map[*nftables.Rule]bool{}
	for _, p := range places {
		existing, err := fw.rulesOf(p.chain)
		if err != nil {
			return 0, err
		}
		present := map[string]bool{}
		for _, r := range existing {
			if comment := commentOf(r); comment != "" && !present[comment] && p.wants(comment) {
				keep[r], present[comment] = true, true
			}
		}
		for _, r := range p.rules {
			if !present[r.comment] {
				fw.add(p, r, existing)
				writes++
			}
		}
	}
	removed, err := fw.deleteOurs(keep)
	if err != nil || writes+removed == 0 {
		return 0, err
	}
	if err := fw.conn.Flush(); err != nil {
		return 0, errs.WrapAs(errs.Unavailable, err, "change rules in other programs' chains")
	}
	return writes + removed, nil
}

func (p place) wants(comment string) bool {
	for _, r := range p.rules {
		if r.comment == comment {
			return true
		}
	}
	return false
}

// add puts a rule first in a base chain, and in other chains last, but before a bare RETURN, behind which nothing is looked
// at: dockerd ended DOCKER-USER with one until version 28.
func (fw *firewall) add(p place, r rule, existing []*nftables.Rule) {
	n := &nftables.Rule{
		Table: p.chain.Table, Chain: p.chain, UserData: userdata.AppendString(nil, userdata.TypeComment, r.comment),
		Exprs: append(append([]expr.Any(nil), r.match...), &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept}),
	}
	if p.first {
		fw.conn.InsertRule(n)
		return
	}
	for _, e := range existing {
		if returns(e) {
			n.Position = e.Handle
			fw.conn.InsertRule(n)
			return
		}
	}
	fw.conn.AddRule(n)
}

// returns says whether a rule is a bare RETURN.
func returns(r *nftables.Rule) bool {
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Counter:
		case *expr.Verdict:
			return e.Kind == expr.VerdictReturn
		default:
			return false
		}
	}
	return false
}

// deleteOurs queues the deletion of our rules except those to keep, and returns their number.
func (fw *firewall) deleteOurs(keep map[*nftables.Rule]bool) (int, error) {
	n := 0
	for _, c := range fw.chains {
		rules, err := fw.rulesOf(c)
		if err != nil {
			return 0, err
		}
		for _, r := range rules {
			if commentOf(r) == "" || keep[r] {
				continue
			}
			if err := fw.conn.DelRule(r); err != nil {
				return 0, errs.WrapAs(errs.Internal, err, "delete a rule of %s", nameOf(c))
			}
			n++
		}
	}
	return n, nil
}

func (fw *firewall) removeOurs() error {
	n, err := fw.deleteOurs(nil)
	if err != nil || n == 0 {
		return err
	}
	return errs.WrapAs(errs.Unavailable, fw.conn.Flush(), "remove rules from other programs' chains")
}

func (fw *firewall) check(cfg Config) ([]State, error) {
	places, err := fw.places(cfg)
	if err != nil {
		return nil, err
	}
	var states []State
	for _, p := range places {
		existing, err := fw.rulesOf(p.chain)
		if err != nil {
			return nil, err
		}
		present := map[string]bool{}
		for _, r := range existing {
			present[commentOf(r)] = true
		}
		for _, r := range p.rules {
			s := State{Name: nameOf(p.chain) + ": " + r.comment, Wanted: "present", Actual: "absent"}
			if present[r.comment] {
				s.Actual, s.Before = "present", "absent"
			}
			states = append(states, s)
		}
	}
	return states, nil
}

// forwardRules let packets of pods, and of the fabric, through.
func forwardRules() []rule {
	match := func(key expr.MetaKey) []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: key, Register: 1},
			// Compared without the final zero byte: the prefix, as iptables' "pw+" and nft's "pw*".
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(linkPrefix)},
		}
	}
	return []rule{
		{Mark + " from pods and peers", match(expr.MetaKeyIIFNAME)},
		{Mark + " to pods and peers", match(expr.MetaKeyOIFNAME)},
	}
}

// tunnelRules let the fabric's own datagrams in from the peers, for a base chain of that family.
func tunnelRules(cfg Config, family nftables.TableFamily) []rule {
	var rules []rule
	for _, p := range cfg.TunnelPeers {
		is4 := p.Addr().Is4()
		if is4 && family == nftables.TableFamilyIPv6 || !is4 && family == nftables.TableFamilyIPv4 {
			continue
		}
		var match []expr.Any
		if family == nftables.TableFamilyINet {
			protocol := byte(unix.NFPROTO_IPV6)
			if is4 {
				protocol = unix.NFPROTO_IPV4
			}
			match = append(match, &expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}})
		}
		offset, length := uint32(8), uint32(16) // source address in the IPv6 header
		if is4 {
			offset, length = 12, 4
		}
		mask := make([]byte, length)
		for i := range p.Bits() {
			mask[i/8] |= 0x80 >> (i % 8)
		}
		match = append(match, &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: append([]byte(cfg.Underlay), 0)},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length})
		if p.Bits() < int(length)*8 {
			match = append(match, &expr.Bitwise{
				SourceRegister: 1, DestRegister: 1, Len: length, Mask: mask, Xor: make([]byte, length),
			})
		}
		match = append(match, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Addr().AsSlice()},
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(cfg.TunnelPort)})
		rules = append(rules, rule{fmt.Sprintf("%s tunnel %d from %s on %s", Mark, cfg.TunnelPort, p, cfg.Underlay), match})
	}
	return rules
}

// checkLegacy reports filter tables of iptables-legacy, which nftables can neither see nor change. They exist only where a
// program asked for them since the host started.
func checkLegacy() ([]State, error) {
	var states []State
	for _, tool := range []struct{ name, file string }{
		{"iptables-legacy", "/proc/thread-self/net/ip_tables_names"}, {"ip6tables-legacy", "/proc/thread-self/net/ip6_tables_names"},
	} {
		b, err := os.ReadFile(tool.file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, errs.WrapAs(errs.Internal, err, "read %s", tool.file)
		}
		for _, table := range strings.Fields(string(b)) {
			if table == "filter" {
				states = append(states, State{
					Name: tool.name + " table filter", Wanted: "absent", Actual: "present",
					Advice: fmt.Sprintf("if its FORWARD chain drops, pods cannot talk: move that firewall to nftables (iptables-nft), or run "+
						"%[1]s -I FORWARD -i pw+ -j ACCEPT and %[1]s -I FORWARD -o pw+ -j ACCEPT", tool.name),
				})
			}
		}
	}
	return states, nil
}
