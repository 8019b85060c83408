package nft

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"podwire.dev/internal/errs"
	"podwire.dev/services/nodeagent/internal/plan"
)

// TableName is the table's name; its family is inet.
const TableName = "podwire"

const (
	socketBuffer = 64 << 20
	// maxElements and maxBytes bound one list of elements: a netlink attribute holds 64 KiB, and one that is longer
	// is cut without an error.
	maxElements  = 500
	maxBytes     = 48 << 10
	affinitySize = 1 << 18
	// patience bounds the wait for the kernel's answers to one batch or dump.
	patience = 60 * time.Second
)

// Result counts what an operation wrote.
type Result struct {
	// Transactions is 0 or 1.
	Transactions int
	// Objects are elements, and the tables, chains, rules, sets and counters of a skeleton, added and removed.
	Objects int
}

// Table is the table in one network namespace.
type Table struct {
	netns int
	conn  *nftables.Conn
	sock  *netlink.Conn
	total Result
	// known are the chains that vary and exist; nil before the first Read or Install.
	known map[string]bool
	// glanced is the ruleset's generation at which Glance found the table whole.
	glanced uint32
}

// Open opens a lasting socket to the kernel in the network namespace of a descriptor, or in the calling thread's if it
// is 0. It needs CAP_NET_ADMIN there.
func Open(netns int) (*Table, error) {
	t := &Table{netns: netns}
	if err := t.dial(); err != nil {
		return nil, err
	}
	return t, nil
}

// Close closes the socket. The table stays.
func (t *Table) Close() error { return t.conn.CloseLasting() }

func (t *Table) dial() error {
	size := func(c *netlink.Conn) error {
		t.sock = c
		raw, err := c.SyscallConn()
		if err != nil {
			return err
		}
		var inner error
		err = raw.Control(func(fd uintptr) {
			inner = errors.Join(
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer))
		})
		return errors.Join(err, inner)
	}
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(t.netns), nftables.WithSockOptions(size))
	if err != nil {
		return errs.WrapAs(errs.Unavailable, err, "nft: open netlink socket (needs CAP_NET_ADMIN)")
	}
	t.conn = conn
	return nil
}

// Total is what was written since Open.
func (t *Table) Total() Result { return t.total }

func table() *nftables.Table {
	return &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
}

// Install replaces the table, whatever it is, by the skeleton and the elements, in one transaction: no packet meets a
// state between.
func (t *Table) Install(want plan.Elements) (Result, error) {
	b, err := newBatch(nil)
	if err != nil {
		return Result{}, err
	}
	b.conn.AddTable(table()) // so that there is one to delete
	b.conn.DelTable(table())
	if err := errors.Join(b.skeleton(), b.add(want.Sorted())); err != nil {
		return Result{}, err
	}
	r, err := t.commit(b)
	return r, errs.Wrap(err, "nft: install table %s", TableName)
}

// Apply commits additions, replacements and removals as one transaction; it does not look at change.Late, which the
// caller applies later as the Remove of another change. Read or Install must have come before. An empty change writes
// nothing.
func (t *Table) Apply(change plan.Change) (Result, error) {
	if len(change.Add)+len(change.Replace)+len(change.Remove) == 0 {
		return Result{}, nil
	}
	if t.known == nil {
		return Result{}, errs.New(errs.Internal, "nft: the table must be read or installed before it is changed")
	}
	b, err := newBatch(t.known)
	if err != nil {
		return Result{}, err
	}
	err = errors.Join(b.remove(change.Replace), b.remove(change.Remove), b.add(change.Replace), b.add(change.Add))
	if err != nil {
		return Result{}, err
	}
	b.dropChains(change.Remove)
	r, err := t.commit(b)
	return r, errs.Wrap(err, "nft: change table %s", TableName)
}

// Remove deletes the table; none is fine too.
func (t *Table) Remove() (Result, error) {
	b, err := newBatch(nil)
	if err != nil {
		return Result{}, err
	}
	b.objects++
	b.conn.AddTable(table())
	b.conn.DelTable(table())
	r, err := t.commit(b)
	t.known = nil
	return r, errs.Wrap(err, "nft: remove table %s", TableName)
}

func (t *Table) reopen() error {
	_ = t.conn.CloseLasting() // what matters is that the next one opens
	return t.dial()
}

// classify tells the errors by which the kernel says that it applied nothing of a batch from all others.
func classify(err error) error {
	for _, refusal := range []error{
		syscall.EEXIST, syscall.ENOENT, syscall.EINVAL, syscall.EBUSY, syscall.EOPNOTSUPP, syscall.ERANGE, syscall.EPERM,
		syscall.ELOOP, syscall.EMLINK, syscall.ENFILE, syscall.ENAMETOOLONG, syscall.ENODATA,
	} {
		if errors.Is(err, refusal) && !errors.Is(err, syscall.ENOBUFS) {
			return errs.WrapAs(errs.Conflict, err, "the kernel refused; read the table and compare")
		}
	}
	return errs.WrapAs(errs.Unavailable, err, "the kernel's answer is not known; read the table and compare")
}

// Version names the skeleton: a digest over sets, chains and rules.
func Version() string {
	h := sha256.New()
	for _, s := range plan.Sets() {
		fmt.Fprintf(h, "%+v\n", s)
	}
	list := append(chains(), endpointCount("count-2", 2), affinity("affinity-1", time.Second))
	for _, c := range list {
		fmt.Fprintf(h, "chain %s\n", c.name)
		if c.base != nil {
			fmt.Fprintf(h, "%s %d %d\n", c.base.kind, *c.base.hook, c.base.priority)
		}
		for _, r := range c.rules {
			fmt.Fprintf(h, "%s\n", r.comment)
			for _, e := range r.code {
				raw, err := marshal(e)
				fmt.Fprintf(h, "%T %x %v\n", e, raw, err)
			}
		}
	}
	return fmt.Sprintf("skeleton-%x", h.Sum(nil)[:6])
}

func fieldType(t plan.Type) nftables.SetDatatype {
	switch t {
	case plan.TypeAddr4:
		return nftables.TypeIPAddr
	case plan.TypeAddr6:
		return nftables.TypeIP6Addr
	case plan.TypeLink:
		return nftables.TypeIFName
	case plan.TypeProto:
		return nftables.TypeInetProto
	case plan.TypePort:
		return nftables.TypeInetService
	case plan.TypeMark:
		return nftables.TypeMark
	}
	return nftables.TypeVerdict
}

func typeOf(list []plan.Type) nftables.SetDatatype {
	if len(list) == 1 {
		return fieldType(list[0])
	}
	parts := make([]nftables.SetDatatype, len(list))
	for i, t := range list {
		parts[i] = fieldType(t)
	}
	return nftables.MustConcatSetType(parts...)
}

func setOf(s plan.Set) *nftables.Set {
	set := &nftables.Set{
		Table: table(), Name: string(s.Name), KeyType: typeOf(s.Key), Interval: s.Interval,
		Concatenation: len(s.Key) > 1, Dynamic: s.Dynamic, HasTimeout: s.Dynamic,
	}
	if s.Key[0] == plan.TypeMark {
		set.KeyByteOrder = binaryutil.NativeEndian
	}
	if s.Dynamic {
		set.Size = affinitySize
	}
	if len(s.Data) > 0 {
		set.IsMap, set.DataType = true, typeOf(s.Data)
	}
	return set
}
