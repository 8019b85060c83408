package nft

import (
	"errors"
	"slices"
	"strconv"
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

// batch collects one transaction. The library writes all messages but those of rules, and hands them over instead of sending
// them: rules hold expressions of our own, and must go into the same transaction.
type batch struct {
	conn    *nftables.Conn
	written []netlink.Message
	rules   []netlink.Message
	objects int
	known   map[string]bool
}

// errTaken is how the library's socket says that it sent nothing.
var errTaken = errors.New("messages taken")

// newBatch makes a batch onto a table in which the given chains, of those that vary, exist.
func newBatch(known map[string]bool) (*batch, error) {
	b := &batch{known: map[string]bool{}}
	for name := range known {
		b.known[name] = true
	}
	var err error
	b.conn, err = nftables.New(nftables.WithTestDial(func(list []netlink.Message) ([]netlink.Message, error) {
		b.written = list
		return nil, errTaken
	}))
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "nft: begin a transaction")
	}
	return b, nil
}

// messages are the whole transaction as it goes to the kernel: the last of the library's messages is the batch's end. Rules
// come after everything that they name; elements that name their chains may come before them.
func (b *batch) messages() ([]netlink.Message, error) {
	if err := b.conn.Flush(); !errors.Is(err, errTaken) {
		return nil, errs.New(errs.Internal, "nft: encode a transaction: %v", err)
	}
	end := len(b.written) - 1
	list := slices.Concat(b.written[:end], b.rules, b.written[end:])
	for i := range list {
		h := &list[i].Header
		h.Length, h.Sequence, h.PID = 0, 0, 0 // of a socket that is none
		h.Flags &^= unix.NLM_F_ECHO           // nobody reads it
	}
	return list, nil
}

// commit sends the batch. On any error the socket is opened anew, since answers may still be queued in it.
func (t *Table) commit(b *batch) (Result, error) {
	list, err := b.messages()
	if err != nil {
		return Result{}, err
	}
	if err := t.send(list); err != nil {
		t.known = nil
		return Result{}, errors.Join(classify(err), t.reopen())
	}
	t.known = b.known
	r := Result{Transactions: 1, Objects: b.objects}
	t.total.Transactions += r.Transactions
	t.total.Objects += r.Objects
	return r, nil
}

// send gives messages to the kernel and reads its answers, one for each that asks for one, to the first error: a batch is
// applied whole or not at all.
func (t *Table) send(list []netlink.Message) error {
	if err := t.sock.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	sent, err := t.sock.SendMessages(list)
	if err != nil {
		return err
	}
	waiting := map[uint32]bool{}
	for _, m := range sent {
		if m.Header.Flags&netlink.Acknowledge != 0 {
			waiting[m.Header.Sequence] = true
		}
	}
	for len(waiting) > 0 {
		answers, err := t.sock.Receive()
		if err != nil {
			return err
		}
		for _, m := range answers {
			delete(waiting, m.Header.Sequence)
		}
	}
	return nil
}

func (b *batch) skeleton() error {
	t := b.conn.AddTable(table())
	b.objects++
	_ = b.conn.AddSet(&nftables.Set{Table: t, Name: Version(), KeyType: nftables.TypeMark}, nil)
	for _, s := range plan.Sets() {
		_ = b.conn.AddSet(setOf(s), nil)
		b.objects++
	}
	for _, c := range Counters() {
		b.conn.AddObj(&nftables.NamedObj{Table: t, Name: string(c), Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
		b.objects++
	}
	list := chains()
	for _, c := range list { // all chains before all rules, since rules name chains
		b.declare(c)
	}
	for _, c := range list {
		if err := b.fill(c); err != nil {
			return err
		}
	}
	return nil
}

func (b *batch) declare(c chain) {
	nc := &nftables.Chain{Table: table(), Name: c.name}
	if c.base != nil {
		policy := nftables.ChainPolicyAccept
		nc.Type, nc.Hooknum, nc.Priority, nc.Policy = c.base.kind, c.base.hook, &c.base.priority, &policy
	}
	b.conn.AddChain(nc)
	b.objects++
}

// fill writes the rules of a chain that is declared.
func (b *batch) fill(c chain) error {
	for _, r := range c.rules {
		m, err := ruleMessage(c.name, r)
		if err != nil {
			return errs.Wrap(err, "nft: rule %q of chain %s", r.comment, c.name)
		}
		b.rules = append(b.rules, m)
		b.objects++
	}
	return nil
}

// ruleMessage appends a rule to a chain.
func ruleMessage(chain string, r commented) (netlink.Message, error) {
	list := make([]netlink.Attribute, 0, len(r.code))
	for _, e := range r.code {
		raw, err := marshal(e)
		if err != nil {
			return netlink.Message{}, err
		}
		list = append(list, netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_LIST_ELEM, Data: raw})
	}
	expressions, err := netlink.MarshalAttributes(list)
	if err != nil {
		return netlink.Message{}, errs.WrapAs(errs.Internal, err, "encode")
	}
	attributes, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_RULE_TABLE, Data: []byte(TableName + "\x00")},
		{Type: unix.NFTA_RULE_CHAIN, Data: append([]byte(chain), 0)},
		{Type: unix.NLA_F_NESTED | unix.NFTA_RULE_EXPRESSIONS, Data: expressions},
		{Type: unix.NFTA_RULE_USERDATA, Data: userdata.AppendString(nil, userdata.NFTNL_UDATA_SET_KEYBYTEORDER, r.comment)},
	})
	if err != nil {
		return netlink.Message{}, errs.WrapAs(errs.Internal, err, "encode")
	}
	return netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWRULE),
			Flags: netlink.Request | netlink.Acknowledge | netlink.Create | netlink.Append,
		},
		// struct nfgenmsg: the family, version 0.
		Data: append([]byte{byte(nftables.TableFamilyINet), 0, 0, 0}, attributes...),
	}, nil
}

// variable makes the chain of a name that varies, or says that the name is none.
func variable(name string) (chain, bool) {
	kind, number, ok := strings.Cut(name, "-")
	n, err := strconv.ParseUint(number, 10, 32)
	if !ok || err != nil || n == 0 || strconv.FormatUint(n, 10) != number {
		return chain{}, false
	}
	switch kind {
	case "count":
		return endpointCount(name, uint32(n)), true
	case "affinity":
		return affinity(name, time.Duration(n)*time.Second), true
	}
	return chain{}, false
}

// needChain makes the chain that a verdict names, unless it is there.
func (b *batch) needChain(v plan.Value) error {
	_, name, _ := strings.Cut(string(v), " ")
	if b.known[name] || name == "" {
		return nil
	}
	c, ok := variable(name)
	if !ok {
		if fixed(name) {
			return nil
		}
		return errs.New(errs.Internal, "nft: verdict %q names a chain that the skeleton does not know", string(v))
	}
	b.declare(c)
	b.known[name] = true
	return b.fill(c)
}

func fixed(name string) bool {
	for _, c := range chains() {
		if c.name == name {
			return true
		}
	}
	return false
}

// dropChains removes the chains of verdicts that are gone.
func (b *batch) dropChains(removed []plan.Element) {
	for _, el := range removed {
		if el.Set != plan.SetPrograms {
			continue
		}
		_, name, _ := strings.Cut(string(el.Value), " ")
		if _, ok := variable(name); ok && b.known[name] {
			b.conn.DelChain(&nftables.Chain{Table: table(), Name: name})
			b.objects++
			delete(b.known, name)
		}
	}
}
