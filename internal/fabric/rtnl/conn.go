// Package rtnl is a conversation with rtnetlink: links, addresses, neighbours, forwarding entries and routes as comparable
// values, read by dumps and written in batches.
//
// In: requests made from values. Out: values, or an error that names the request that the kernel refused and says why.
//
// Invariants: a batch is one system call to send and, where it succeeds, one to receive, because only its last request asks
// for an answer (the kernel reports failures unasked); requests of a batch are carried out in order, and those behind a
// failed one are carried out too. A value that was written reads back equal, so that desired and actual state compare with
// ==. A Conn stays in the network namespace of the thread that opened it, whoever uses it.
//
// It decides nothing: what belongs to whom, and what is to be added or removed, is the caller's.
package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"podwire.dev/internal/errs"
)

// Conn is an rtnetlink socket. Its methods may be called at the same time.
type Conn struct {
	mu     sync.Mutex
	fd     int
	seq    uint32
	buf    []byte
	writes uint64
	// events counts messages that nobody asked for, read while waiting for answers.
	events uint64
}

// receiveBuffer holds the largest message of a dump; the kernel fills at most 32 KiB at once.
const receiveBuffer = 64 << 10

// Open opens a socket in the network namespace of the calling thread.
func Open() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "rtnetlink: open socket")
	}
	// Strict checking makes the kernel filter dumps; extended acknowledgements carry the reason of a refusal.
	for _, option := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK, unix.NETLINK_GET_STRICT_CHK} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, option, 1); err != nil {
			_ = unix.Close(fd)
			return nil, errs.WrapAs(errs.Internal, err, "rtnetlink: socket option %d (Linux 4.20 or newer is needed)", option)
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		_ = unix.Close(fd)
		return nil, errs.WrapAs(errs.Internal, err, "rtnetlink: bind socket")
	}
	return &Conn{fd: fd, buf: make([]byte, receiveBuffer)}, nil
}

// Close closes the socket.
func (c *Conn) Close() { _ = unix.Close(c.fd) }

// Writes is the number of requests that changed something since Open.
func (c *Conn) Writes() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writes
}

// Request is one change. The zero value is not usable; the functions of this package make requests.
type Request struct {
	what     string
	typ      uint16
	flags    uint16
	payload  []byte
	tolerate []unix.Errno
	query    bool
}

// Tolerating returns the request with errors that are no failure of the batch: what was to be removed is gone already.
func (r Request) Tolerating(errors ...unix.Errno) Request {
	r.tolerate = append(append([]unix.Errno(nil), r.tolerate...), errors...)
	return r
}

// Refusal is the kernel's refusal of one request.
type Refusal struct {
	// Request says what was asked for.
	Request string
	Errno   unix.Errno
	// Reason is the kernel's own text; often empty.
	Reason string
}

// Error names the request, the error and the reason.
func (r *Refusal) Error() string {
	text := fmt.Sprintf("rtnetlink: %s: %s", r.Request, r.Errno)
	if r.Reason != "" {
		text += " (" + r.Reason + ")"
	}
	return text
}

// Unwrap gives the error number, for errors.Is.
func (r *Refusal) Unwrap() error { return r.Errno }

// maxBatch bounds the bytes of one send; the socket's send buffer is 208 KiB by default.
const maxBatch = 48 << 10

// Do carries the requests out, in order. It returns the refusals, joined; what was not refused is done.
func (c *Conn) Do(requests ...Request) error {
	_, err := c.exchange(requests)
	return err
}

// exchange sends requests and returns the messages that answer queries among them.
func (c *Conn) exchange(requests []Request) ([]message, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.exchangeLocked(requests)
}

func (c *Conn) exchangeLocked(requests []Request) ([]message, error) {
	var answers []message
	var failed []error
	for len(requests) > 0 {
		n, size := 0, 0
		for n < len(requests) && (n == 0 || size+len(requests[n].payload) < maxBatch) {
			size += len(requests[n].payload) + 32
			n++
		}
		got, err := c.batch(requests[:n], size)
		answers = append(answers, got...)
		failed = append(failed, err)
		requests = requests[n:]
	}
	return answers, errors.Join(failed...)
}

func (c *Conn) batch(requests []Request, size int) ([]message, error) {
	first := c.seq + 1
	out := make([]byte, 0, size)
	for i, r := range requests {
		flags := r.flags | unix.NLM_F_REQUEST
		if i == len(requests)-1 {
			flags |= unix.NLM_F_ACK
		}
		c.seq++
		out = appendMessage(out, r.typ, flags, c.seq, r.payload)
	}
	if err := unix.Sendto(c.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "rtnetlink: send %s", requests[0].what)
	}
	for _, r := range requests {
		if !r.query {
			c.writes++
		}
	}
	var answers []message
	var failed []error
	for {
		msgs, err := c.receive()
		if err != nil {
			return nil, err
		}
		for _, m := range msgs {
			i := int(m.seq - first)
			if i < 0 || i >= len(requests) {
				c.events++ // or an answer to a batch that failed half-way, which does no harm
				continue
			}
			if m.typ != unix.NLMSG_ERROR {
				answers = append(answers, m)
				continue
			}
			if refusal := m.refusal(requests[i]); refusal != nil {
				if !requests[i].query {
					c.writes--
				}
				if !contains(requests[i].tolerate, refusal.Errno) {
					failed = append(failed, refusal)
				}
			}
			if i == len(requests)-1 {
				return answers, errors.Join(failed...)
			}
		}
	}
}

func contains(list []unix.Errno, e unix.Errno) bool {
	for _, x := range list {
		if x == e {
			return true
		}
	}
	return false
}

// dump asks for all of something and returns every message of the answer.
func (c *Conn) dump(what string, typ uint16, payload []byte) ([]message, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// A dump that others' changes cut in two may lack entries: read it again.
	for attempt := 0; attempt < 16; attempt++ {
		msgs, torn, err := c.dumpOnce(what, typ, payload)
		if err != nil || !torn {
			return msgs, err
		}
	}
	return nil, errs.New(errs.Unavailable, "rtnetlink: list %s: it changed during each of 16 attempts to read it", what)
}

func (c *Conn) dumpOnce(what string, typ uint16, payload []byte) (msgs []message, torn bool, err error) {
	c.seq++
	out := appendMessage(nil, typ, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, c.seq, payload)
	if err := unix.Sendto(c.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, false, errs.WrapAs(errs.Internal, err, "rtnetlink: list %s", what)
	}
	for {
		got, err := c.receive()
		if err != nil {
			return nil, false, err
		}
		for _, m := range got {
			if m.seq != c.seq {
				continue
			}
			torn = torn || m.flags&unix.NLM_F_DUMP_INTR != 0
			switch m.typ {
			case unix.NLMSG_ERROR, unix.NLMSG_DONE:
				if refusal := m.refusal(Request{what: "list " + what}); refusal != nil {
					return nil, false, refusal
				}
				return msgs, torn, nil
			default:
				msgs = append(msgs, m)
			}
		}
	}
}

// message is one netlink message, its payload copied.
type message struct {
	typ     uint16
	flags   uint16
	seq     uint32
	payload []byte
}

const headerLen = 16

func appendMessage(b []byte, typ, flags uint16, seq uint32, payload []byte) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(headerLen+len(payload)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	return append(b, payload...)
}

func (c *Conn) receive() ([]message, error) {
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, errs.WrapAs(errs.Internal, err, "rtnetlink: receive")
		}
		return parseMessages(c.buf[:n])
	}
}

func parseMessages(b []byte) ([]message, error) {
	var msgs []message
	for len(b) >= headerLen {
		size := int(binary.NativeEndian.Uint32(b))
		if size < headerLen || size > len(b) {
			return nil, errs.New(errs.Internal, "rtnetlink: a message of %d bytes in %d", size, len(b))
		}
		msgs = append(msgs, message{
			typ: binary.NativeEndian.Uint16(b[4:]), flags: binary.NativeEndian.Uint16(b[6:]),
			seq: binary.NativeEndian.Uint32(b[8:]), payload: append([]byte(nil), b[headerLen:size]...),
		})
		b = b[min(align(size), len(b)):]
	}
	return msgs, nil
}

// refusal is what an NLMSG_ERROR or NLMSG_DONE message says; nil for success.
func (m message) refusal(r Request) *Refusal {
	if len(m.payload) < 4 {
		return nil
	}
	code := int32(binary.NativeEndian.Uint32(m.payload))
	if code == 0 {
		return nil
	}
	refusal := &Refusal{Request: r.what, Errno: unix.Errno(-code)}
	rest := m.payload[4:]
	if m.typ == unix.NLMSG_ERROR {
		rest = rest[min(headerLen, len(rest)):] // the header of the request; NETLINK_CAP_ACK leaves its payload out
	}
	for _, a := range attributes(rest) {
		if a.typ == nlmsgerrAttrMsg {
			refusal.Reason = text(a.value)
		}
	}
	return refusal
}

// nlmsgerrAttrMsg is NLMSGERR_ATTR_MSG of linux/netlink.h.
const nlmsgerrAttrMsg = 1
