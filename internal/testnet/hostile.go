package testnet

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Profile is a kind of host that lets no foreign traffic through.
type Profile struct {
	// Tables are the families that the profile covers: "ip" and "ip6" as iptables-nft names them.
	docker, ufw, firewalld bool
}

// The profiles of [NS.Hostile].
var (
	// ForwardDrop is `iptables -P FORWARD DROP` in both families and nothing else.
	ForwardDrop = Profile{}
	// Docker is what dockerd leaves: FORWARD jumps to DOCKER-USER first, and drops at its end.
	Docker = Profile{docker: true}
	// UFW is what ufw leaves: FORWARD and INPUT drop, after jumps to the chains of the user's rules.
	UFW = Profile{ufw: true}
	// Firewalld is its nftables backend: a table `inet firewalld` whose base chains end with a reject.
	Firewalld = Profile{firewalld: true}
)

// Hostile makes the namespace a host of that profile: a firewall that drops forwarded traffic, bridge-nf-call on, and
// strict reverse path filtering. A namespace may get several profiles.
func (s *NS) Hostile(p Profile) {
	s.t.Helper()
	for _, name := range []string{
		"net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables",
		"net/ipv4/conf/all/rp_filter", "net/ipv4/conf/default/rp_filter",
	} {
		if s.Sysctl(name) == "" {
			s.t.Fatalf("in namespace %s: the kernel has no sysctl %s", s.name, name)
		}
		s.SetSysctl(name, "1")
	}
	c := s.NFT()
	if p.firewalld {
		firewalld(c)
	} else {
		for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
			p.iptables(c, family)
		}
	}
	if err := c.Flush(); err != nil {
		s.t.Fatalf("in namespace %s: make it hostile: %v", s.name, err)
	}
}

// acceptICMPv6 lets neighbour discovery in, as every firewall must.
func acceptICMPv6(c *nftables.Conn, chain *nftables.Chain) {
	c.AddRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_ICMPV6}},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}})
}

// NFT is an nftables connection in the namespace.
func (s *NS) NFT() *nftables.Conn {
	s.t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(s.FD()))
	if err != nil {
		s.t.Fatalf("in namespace %s: open nftables: %v", s.name, err)
	}
	return c
}

func (p Profile) iptables(c *nftables.Conn, family nftables.TableFamily) {
	t := c.AddTable(&nftables.Table{Name: "filter", Family: family})
	drop := nftables.ChainPolicyDrop
	base := func(name string, hook *nftables.ChainHook) *nftables.Chain {
		return c.AddChain(&nftables.Chain{
			Table: t, Name: name, Type: nftables.ChainTypeFilter, Hooknum: hook,
			Priority: nftables.ChainPriorityFilter, Policy: &drop,
		})
	}
	jump := func(from *nftables.Chain, to string) {
		c.AddChain(&nftables.Chain{Table: t, Name: to})
		c.AddRule(&nftables.Rule{Table: t, Chain: from, Exprs: []expr.Any{
			&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictJump, Chain: to},
		}})
	}
	forward := base("FORWARD", nftables.ChainHookForward)
	if p.docker {
		jump(forward, "DOCKER-USER")
	}
	if p.ufw {
		prefix := map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ufw", nftables.TableFamilyIPv6: "ufw6"}[family]
		jump(forward, prefix+"-user-forward")
		input := base("INPUT", nftables.ChainHookInput)
		acceptICMPv6(c, input)
		jump(input, prefix+"-user-input")
	}
}

func firewalld(c *nftables.Conn) {
	t := c.AddTable(&nftables.Table{Name: "firewalld", Family: nftables.TableFamilyINet})
	for name, hook := range map[string]*nftables.ChainHook{
		"filter_FORWARD": nftables.ChainHookForward, "filter_INPUT": nftables.ChainHookInput,
	} {
		accept := nftables.ChainPolicyAccept
		chain := c.AddChain(&nftables.Chain{
			Table: t, Name: name, Type: nftables.ChainTypeFilter, Hooknum: hook,
			Priority: nftables.ChainPriorityRef(*nftables.ChainPriorityFilter + 10), Policy: &accept,
		})
		if hook == nftables.ChainHookInput {
			acceptICMPv6(c, chain)
		}
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{
			// icmpx type admin-prohibited
			&expr.Reject{Type: 2, Code: 3},
		}})
	}
}

// Ruleset describes the namespace's nftables: one line per table, chain with its number of rules. For messages and for
// comparing before with after.
func (s *NS) Ruleset() string {
	s.t.Helper()
	c := s.NFT()
	chains, err := c.ListChains()
	if err != nil {
		s.t.Fatalf("in namespace %s: list chains: %v", s.name, err)
	}
	text := ""
	for _, ch := range chains {
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			s.t.Fatalf("in namespace %s: list rules of %s: %v", s.name, ch.Name, err)
		}
		text += fmt.Sprintf("%d %s %s: %d rules\n", ch.Table.Family, ch.Table.Name, ch.Name, len(rules))
	}
	return text
}
