package wall

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"

	"podwire.dev/internal/errs"
)

// TableName is that of the table, of family inet.
const TableName = "podwire-member"

// Config is what of a wall never changes.
type Config struct {
	// Link is the tunnel's device, Port its UDP port.
	Link string
	Port uint16
	// TCP are the ports that are served to pods.
	TCP []uint16
}

// State is who is let through.
type State struct {
	// Own are the member's fabric addresses.
	Own []netip.Addr
	// Members are the underlay addresses of the other members.
	Members []netip.Addr
}

func (s State) sorted() State {
	order := func(list []netip.Addr) []netip.Addr {
		list = slices.Clone(list)
		slices.SortFunc(list, netip.Addr.Compare)
		return slices.Compact(list)
	}
	return State{order(s.Own), order(s.Members)}
}

// Wall writes the table of the network namespace of the calling thread. It is not safe for concurrent use.
type Wall struct{ cfg Config }

// New makes a Wall; it writes nothing.
func New(cfg Config) *Wall { return &Wall{cfg} }

// markOf is the name of an empty set that says what the table holds, so that a table is recognised without being read.
func (w *Wall) markOf(s State) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %+v %+v", layout, w.cfg, s))
	return "state-" + hex.EncodeToString(sum[:8])
}

// layout is counted up with each change of the rules.
const layout = 1

// bufferBytes is how much a transaction, or its answers, may take: one for every message of it.
const bufferBytes = 64 << 20

func open() (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetWriteBuffer(bufferBytes), c.SetReadBuffer(bufferBytes))
	}))
	return conn, errs.WrapAs(errs.Internal, err, "wall: open nftables")
}

// Apply makes the table agree, and says whether it had to be written. Unavailable where the kernel refuses.
func (w *Wall) Apply(state State) (written bool, err error) {
	s := state.sorted()
	conn, err := open()
	if err != nil {
		return false, err
	}
	if whole, err := w.holds(conn, s); whole || err != nil {
		return false, err
	}
	table := &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
	conn.AddTable(table) // else the deletion would fail where there is none
	conn.DelTable(table)
	conn.AddTable(table)
	sets, err := w.sets(conn, table, s)
	if err != nil {
		return false, errs.WrapAs(errs.Internal, err, "wall: encode the sets")
	}
	for _, c := range w.chains() {
		chain := conn.AddChain(&nftables.Chain{
			Name: c.name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: c.hook, Priority: nftables.ChainPriorityFilter,
		})
		for _, r := range c.rules {
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: r.exprs(sets), UserData: comment(r.why)})
		}
	}
	return true, errs.WrapAs(errs.Unavailable, conn.Flush(), "wall: write the table inet %s", TableName)
}

// holds says whether the table is there as it would be written. The library's errors do not tell what is missing, so that
// everything is looked up in a list.
func (w *Wall) holds(conn *nftables.Conn, s State) (bool, error) {
	failed := func(err error) (bool, error) {
		return false, errs.WrapAs(errs.Unavailable, err, "wall: read the table inet %s", TableName)
	}
	table := &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
	tables, err := conn.ListTablesOfFamily(table.Family)
	if err != nil || !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == table.Name }) {
		return failed(err)
	}
	sets, err := conn.GetSets(table)
	mark := w.markOf(s)
	if err != nil || !slices.ContainsFunc(sets, func(set *nftables.Set) bool { return set.Name == mark }) {
		return failed(err)
	}
	chains, err := conn.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return failed(err)
	}
	for _, c := range w.chains() {
		if !slices.ContainsFunc(chains, func(have *nftables.Chain) bool { return have.Name == c.name && have.Table.Name == table.Name }) {
			return false, nil
		}
		if rules, err := conn.GetRules(table, &nftables.Chain{Name: c.name, Table: table}); err != nil || len(rules) != len(c.rules) {
			return failed(err)
		}
	}
	return true, nil
}

// Remove takes the table away; none is no error.
func (w *Wall) Remove() error {
	conn, err := open()
	if err != nil {
		return err
	}
	table := &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
	conn.AddTable(table)
	conn.DelTable(table)
	return errs.WrapAs(errs.Unavailable, conn.Flush(), "wall: remove the table inet %s", TableName)
}

// Names of the sets.
const (
	setMembers4, setMembers6 = "members4", "members6"
	setOwn4, setOwn6         = "own4", "own6"
)

// maxElements is how many elements go into one message, whose length the kernel takes modulo 64 KiB.
const maxElements = 400

func (w *Wall) sets(conn *nftables.Conn, table *nftables.Table, s State) (map[string]*nftables.Set, error) {
	out := map[string]*nftables.Set{}
	add := func(name string, key nftables.SetDatatype, elements []nftables.SetElement) error {
		set := &nftables.Set{Table: table, Name: name, KeyType: key}
		if err := conn.AddSet(set, nil); err != nil {
			return err
		}
		out[name] = set
		for part := range slices.Chunk(elements, maxElements) {
			if err := conn.SetAddElements(set, part); err != nil {
				return err
			}
		}
		return nil
	}
	own4, own6 := elements(s.Own)
	members4, members6 := elements(s.Members)
	return out, errors.Join(
		add(w.markOf(s), nftables.TypeIPAddr, nil),
		add(setOwn4, nftables.TypeIPAddr, own4), add(setOwn6, nftables.TypeIP6Addr, own6),
		add(setMembers4, nftables.TypeIPAddr, members4), add(setMembers6, nftables.TypeIP6Addr, members6),
	)
}

func elements(list []netip.Addr) (v4, v6 []nftables.SetElement) {
	for _, a := range list {
		e := nftables.SetElement{Key: a.AsSlice()}
		if a.Is4() {
			v4 = append(v4, e)
		} else {
			v6 = append(v6, e)
		}
	}
	return v4, v6
}
