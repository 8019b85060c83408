package nft

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"podwire.dev/internal/errs"
	"podwire.dev/services/nodeagent/internal/plan"
)

// State is what the kernel holds of the table.
type State struct {
	// Present: there is a table of this name. Whole: it has this package's skeleton, every chain with its rules. A
	// table that is present and not whole (another version's, or changed by hand) must be installed anew.
	Present, Whole bool
	// Damage says, where the table is present and not whole, what is wrong with it.
	Damage string
	// Elements are the table's; empty where it is not whole.
	Elements plan.Elements
}

func (s State) equal(o State) bool {
	return s.Present == o.Present && s.Whole == o.Whole && s.Damage == o.Damage && s.Elements.Equal(o.Elements)
}

// Read reads the table, until two readings agree with no transaction in between: a dump of a hash table that is being
// resized leaves elements out, without saying so (Linux 6.18, seen as 93,497 of 100,005 right after a large commit). It
// fails (errs.Unavailable) where the namespace's ruleset keeps changing.
func (t *Table) Read() (State, error) {
	var last State
	var lastGeneration uint32
	t.known = nil
	for i := range 20 {
		before, err := t.generation()
		if err != nil {
			return State{}, err
		}
		s, known, err := t.read()
		if err != nil {
			return State{}, errs.Wrap(errors.Join(err, t.reopen()), "nft: read table %s", TableName)
		}
		now, err := t.generation()
		if err != nil {
			return State{}, err
		}
		if i > 0 && now == before && lastGeneration == before && s.equal(last) {
			t.known = known
			return s, nil
		}
		last, lastGeneration = s, before
	}
	return State{}, errs.New(errs.Unavailable, "nft: read table %s: the ruleset keeps changing; try again", TableName)
}

func (t *Table) read() (State, map[string]bool, error) {
	if err := t.sock.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return State{}, nil, err
	}
	tables, err := t.conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return State{}, nil, err
	}
	s := State{Elements: plan.Elements{}}
	for _, other := range tables {
		s.Present = s.Present || other.Name == TableName
	}
	if !s.Present {
		return s, nil, nil
	}
	known, damage, err := t.inspect()
	if err != nil || damage != "" {
		s.Damage = damage
		return s, nil, err
	}
	for _, def := range plan.Sets() {
		if def.Dynamic {
			continue
		}
		list, err := t.conn.GetSetElements(setOf(def))
		if err != nil {
			return s, nil, errs.WrapAs(errs.Unavailable, err, "elements of %s", def.Name)
		}
		m, err := decode(def, list)
		if err != nil {
			return s, nil, err
		}
		if len(m) > 0 {
			s.Elements[def.Name] = m
		}
	}
	s.Whole = true
	return s, known, nil
}

// inspect compares sets, chains and rules with the skeleton. Rules are told by their comments, which are lost when
// somebody writes a rule anew.
func (t *Table) inspect() (known map[string]bool, damage string, err error) {
	sets, err := t.conn.GetSets(table())
	if err != nil {
		return nil, "", err
	}
	have := map[string]bool{}
	for _, s := range sets {
		have[s.Name] = true
	}
	if !have[Version()] {
		return nil, "another version's", nil
	}
	for _, s := range plan.Sets() {
		if !have[string(s.Name)] {
			return nil, "set " + string(s.Name) + " is missing", nil
		}
	}
	existing, err := t.conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, "", err
	}
	names := map[string]bool{}
	known = map[string]bool{}
	expected := chains()
	for _, c := range existing {
		if c.Table.Name != TableName {
			continue
		}
		names[c.Name] = true
		if c.Policy != nil && *c.Policy != nftables.ChainPolicyAccept {
			return nil, "chain " + c.Name + " has another policy", nil
		}
		if v, ok := variable(c.Name); ok {
			known[c.Name] = true
			expected = append(expected, v)
		}
	}
	rules, err := t.rules()
	if err != nil {
		return nil, "", err
	}
	for _, c := range expected {
		if !names[c.name] {
			return nil, "chain " + c.name + " is missing", nil
		}
		if !c.same(rules[c.name]) {
			return nil, "chain " + c.name + " has other rules", nil
		}
	}
	return known, "", nil
}

// seenRule is what tells a rule from others: its comment, and the number of its expressions.
type seenRule struct {
	comment     string
	expressions int
}

// rules are the table's, by chain and in order. The library cannot read all of them: see own.
func (t *Table) rules() (map[string][]seenRule, error) {
	name, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_RULE_TABLE, Data: []byte(TableName + "\x00")}})
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "rules")
	}
	list, err := t.sock.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE),
			Flags: netlink.Request | netlink.Dump,
		},
		// struct nfgenmsg: the family, version 0.
		Data: append([]byte{byte(nftables.TableFamilyINet), 0, 0, 0}, name...),
	})
	if err != nil {
		return nil, errs.WrapAs(errs.Unavailable, err, "rules")
	}
	found := map[string][]seenRule{}
	for _, m := range list {
		ad, err := netlink.NewAttributeDecoder(m.Data[min(4, len(m.Data)):])
		if err != nil {
			return nil, errs.WrapAs(errs.Unavailable, err, "rules")
		}
		var chain string
		var r seenRule
		for ad.Next() {
			switch ad.Type() {
			case unix.NFTA_RULE_CHAIN:
				chain = ad.String()
			case unix.NFTA_RULE_USERDATA:
				comment, _ := userdata.GetString(ad.Bytes(), userdata.NFTNL_UDATA_SET_KEYBYTEORDER)
				r.comment = strings.TrimRight(comment, "\x00")
			case unix.NFTA_RULE_EXPRESSIONS:
				ad.Nested(func(inner *netlink.AttributeDecoder) error {
					r.expressions = inner.Len()
					return nil
				})
			}
		}
		if err := ad.Err(); err != nil {
			return nil, errs.WrapAs(errs.Unavailable, err, "rules of %s", chain)
		}
		found[chain] = append(found[chain], r)
	}
	return found, nil
}

func (c *chain) same(seen []seenRule) bool {
	return slices.EqualFunc(c.rules, seen, func(want commented, r seenRule) bool {
		return want.comment == r.comment && len(want.code) == r.expressions
	})
}

// generation is a number that rises with each transaction of the namespace.
func (t *Table) generation() (uint32, error) {
	replies, err := t.sock.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN),
			Flags: netlink.Request,
		},
		Data: make([]byte, 4), // struct nfgenmsg: any family, version 0
	})
	if err != nil {
		return 0, errs.WrapAs(errs.Unavailable, errors.Join(err, t.reopen()), "nft: read the ruleset's generation")
	}
	for _, m := range replies {
		ad, err := netlink.NewAttributeDecoder(m.Data[min(4, len(m.Data)):])
		if err != nil {
			return 0, errs.WrapAs(errs.Unavailable, err, "nft: read the ruleset's generation")
		}
		ad.ByteOrder = binary.BigEndian
		for ad.Next() {
			if ad.Type() == unix.NFTA_GEN_ID {
				return ad.Uint32(), nil
			}
		}
	}
	return 0, errs.New(errs.Unavailable, "nft: the kernel does not tell the ruleset's generation")
}

// Count is the value of one counter.
type Count struct{ Packets, Bytes uint64 }

// Counts reads the counters; none where the table is not there.
func (t *Table) Counts() (map[Counter]Count, error) {
	objects, err := t.conn.GetNamedObjects(table())
	if err != nil {
		return nil, errs.WrapAs(errs.Unavailable, errors.Join(err, t.reopen()), "nft: read counters")
	}
	counts := map[Counter]Count{}
	for _, o := range objects {
		named, ok := o.(*nftables.NamedObj)
		if !ok {
			continue
		}
		if c, ok := named.Obj.(*expr.Counter); ok {
			counts[Counter(named.Name)] = Count{c.Packets, c.Bytes}
		}
	}
	return counts, nil
}
