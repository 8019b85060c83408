package ct

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"podwire.dev/internal/errs"
)

// The messages of linux/netfilter/nfnetlink_conntrack.h.
const (
	messageNew    = unix.NFNL_SUBSYS_CTNETLINK << 8
	messageGet    = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1
	messageDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2
)

const (
	messageHeader = 16
	nfgenHeader   = 4
	// dumpBuffer holds the largest piece of a dump that the kernel makes: 32 KiB.
	dumpBuffer = 64 << 10
	// dumpTries bounds how often a dump is begun anew that the kernel says was interrupted.
	dumpTries = 3
	// patience bounds the wait for one answer of the kernel.
	patience = 30 * time.Second
)

// Table is the conntrack table of one network namespace. Entries are read by our own few lines and not by a library of
// netlink messages: 100,000 of them are read without keeping any, and deleted by id, which none of the libraries sends.
// It is not safe for concurrent use.
type Table struct {
	netns   int
	entries *netlink.Conn
	routes  *netlink.Conn
	buffer  []byte
}

// Open opens sockets to the kernel in the network namespace of a descriptor, or in the calling thread's if it is 0. It
// needs CAP_NET_ADMIN there.
func Open(netns int) (*Table, error) {
	t := &Table{netns: netns, buffer: make([]byte, dumpBuffer)}
	var err error
	if t.routes, err = netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{NetNS: netns}); err != nil {
		return nil, errs.WrapAs(errs.Unavailable, err, "conntrack: open netlink socket")
	}
	if err := t.dial(); err != nil {
		return nil, errors.Join(err, t.routes.Close())
	}
	return t, nil
}

// Close closes the sockets.
func (t *Table) Close() error { return errors.Join(t.entries.Close(), t.routes.Close()) }

func (t *Table) dial() error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: t.netns})
	if err != nil {
		return errs.WrapAs(errs.Unavailable, err, "conntrack: open netlink socket (needs CAP_NET_ADMIN)")
	}
	t.entries = conn
	return nil
}

// reopen leaves behind what a failed exchange may still bring.
func (t *Table) reopen() error {
	_ = t.entries.Close() // what matters is that the next one opens
	return t.dial()
}

// Each calls fn for every entry of both families, in no particular order; one may come twice. The entry is valid during
// the call only. Entries that begin or end meanwhile may be missed.
func (t *Table) Each(ctx context.Context, fn func(*Entry)) error {
	for try := 1; ; try++ {
		interrupted, err := t.dump(ctx, fn)
		if err != nil {
			return errs.WrapAs(errs.Unavailable, errors.Join(err, t.reopen()), "conntrack: list flows")
		}
		if !interrupted || try == dumpTries {
			return nil
		}
	}
}

func (t *Table) dump(ctx context.Context, fn func(*Entry)) (interrupted bool, err error) {
	// struct nfgenmsg: every family, version 0.
	request, err := t.entries.Send(netlink.Message{
		Header: netlink.Header{Type: messageGet, Flags: netlink.Request | netlink.Dump}, Data: make([]byte, nfgenHeader),
	})
	if err != nil {
		return false, err
	}
	raw, err := t.entries.SyscallConn()
	if err != nil {
		return false, err
	}
	d := dump{sequence: request.Header.Sequence, each: fn}
	for !d.done {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		if err := t.entries.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return false, err
		}
		var n int
		var inner error
		err := raw.Read(func(fd uintptr) bool {
			n, _, inner = unix.Recvfrom(int(fd), t.buffer, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
			return !errors.Is(inner, unix.EAGAIN)
		})
		if err = errors.Join(err, inner); err != nil {
			return false, err
		}
		if n > len(t.buffer) {
			return false, errs.New(errs.Internal, "a piece of %d bytes does not fit", n)
		}
		if err := d.read(t.buffer[:n]); err != nil {
			return false, err
		}
	}
	return d.interrupted, nil
}

// dump reads the pieces of a kernel's answer.
type dump struct {
	sequence          uint32
	each              func(*Entry)
	entry             Entry
	done, interrupted bool
}

func (d *dump) read(b []byte) error {
	for len(b) > 0 && !d.done {
		if len(b) < messageHeader {
			return errs.New(errs.Internal, "a message of %d bytes is cut off", len(b))
		}
		n := int(binary.NativeEndian.Uint32(b))
		if n < messageHeader || n > len(b) {
			return errs.New(errs.Internal, "a message of %d bytes in %d", n, len(b))
		}
		if err := d.message(b[:n]); err != nil {
			return err
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return nil
}

func (d *dump) message(b []byte) error {
	if binary.NativeEndian.Uint32(b[8:]) != d.sequence {
		return nil // an answer to somebody who did not wait for it
	}
	flags, body := netlink.HeaderFlags(binary.NativeEndian.Uint16(b[6:])), b[messageHeader:]
	d.interrupted = d.interrupted || flags&netlink.DumpInterrupted != 0
	switch netlink.HeaderType(binary.NativeEndian.Uint16(b[4:])) {
	case netlink.Done, netlink.Error:
		d.done = true
		if len(body) >= 4 {
			if code := int32(binary.NativeEndian.Uint32(body)); code < 0 {
				return syscall.Errno(-code)
			}
		}
	default:
		if len(body) >= nfgenHeader && d.entry.decode(body[nfgenHeader:]) {
			d.each(&d.entry)
		}
	}
	return nil
}

// Delete deletes entries and returns how many were still there.
func (t *Table) Delete(ctx context.Context, entries []Entry) (int, error) {
	return t.each(ctx, entries, func(e *Entry) error { return t.ask(messageDelete, e, nil) })
}

// SetMark sets the bits of mask in the marks of entries to those of mark, and returns how many entries were still there. The
// kernel finds an entry to change by its tuple alone: one that began anew meanwhile is changed, too.
func (t *Table) SetMark(ctx context.Context, entries []Entry, mark, mask uint32) (int, error) {
	var change []byte
	for kind, v := range map[uint16]uint32{ctaMark: mark & mask, ctaMarkMask: mask} {
		change = binary.NativeEndian.AppendUint16(change, attributeHeader+4)
		change = binary.NativeEndian.AppendUint16(change, kind)
		change = binary.BigEndian.AppendUint32(change, v)
	}
	return t.each(ctx, entries, func(e *Entry) error { return t.ask(messageNew, e, change) })
}

// each changes entries one by one, and returns how many were still there.
func (t *Table) each(ctx context.Context, entries []Entry, change func(*Entry) error) (int, error) {
	done := 0
	for i := range entries {
		if err := ctx.Err(); err != nil {
			return done, errs.WrapAs(errs.Unavailable, err, "conntrack: %d of %d flows changed", done, len(entries))
		}
		err := change(&entries[i])
		switch {
		case err == nil:
			done++
		case errors.Is(err, unix.ENOENT): // it ended, or began anew under another id
		default:
			return done, errs.WrapAs(errs.Unavailable, errors.Join(err, t.reopen()), "conntrack: change a flow of %s",
				entries[i].Original.Source)
		}
	}
	return done, nil
}

// ask sends a message about one entry. Without the flag to create one, an entry that is gone is ENOENT.
func (t *Table) ask(message netlink.HeaderType, e *Entry, change []byte) error {
	family := byte(unix.AF_INET6)
	if e.Original.Source.Addr().Is4() {
		family = unix.AF_INET
	}
	data := []byte{family, 0, 0, 0}
	for _, raw := range e.name {
		data = append(data, raw...)
		data = append(data, make([]byte, -len(raw)&3)...)
	}
	if err := t.entries.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	_, err := t.entries.Execute(netlink.Message{
		Header: netlink.Header{Type: message, Flags: netlink.Request | netlink.Acknowledge}, Data: append(data, change...),
	})
	return err
}

// addressHeader is the size of struct ifaddrmsg.
const addressHeader = 8

// Addresses are all addresses of the namespace itself.
func (t *Table) Addresses() (map[netip.Addr]bool, error) {
	if err := t.routes.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return nil, errs.WrapAs(errs.Unavailable, err, "conntrack: list own addresses")
	}
	list, err := t.routes.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETADDR, Flags: netlink.Request | netlink.Dump},
		Data:   make([]byte, addressHeader),
	})
	if err != nil {
		return nil, errs.WrapAs(errs.Unavailable, err, "conntrack: list own addresses")
	}
	own := map[netip.Addr]bool{}
	for _, m := range list {
		if m.Header.Type != unix.RTM_NEWADDR || len(m.Data) < addressHeader {
			continue
		}
		var local, address netip.Addr
		attributes(m.Data[addressHeader:], func(kind uint16, _, data []byte) {
			a, _ := netip.AddrFromSlice(data)
			switch kind {
			case unix.IFA_LOCAL:
				local = a
			case unix.IFA_ADDRESS: // the peer's, where IFA_LOCAL says ours
				address = a
			}
		})
		if local.IsValid() {
			address = local
		}
		if address.IsValid() {
			own[address] = true
		}
	}
	return own, nil
}
