package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxAttempts bounds how often one question is sent, over all servers.
	maxAttempts = 3
	// payload is what we take over UDP, in bytes: what passes every path unfragmented (DNS flag day 2020).
	payload = 1232
	// receives is what is read all the same, of servers that do not keep to it.
	receives = 4096
	// A server that failed is asked after the others for a while, longer each time.
	firstPause = time.Second
	maxPause   = 30 * time.Second
)

// server is an upstream server with its health.
type server struct {
	addr netip.AddrPort

	mu       sync.Mutex
	failures int
	until    time.Time
}

// serversOf keeps those of the servers known already that are still wanted.
func serversOf(addrs []netip.AddrPort, known []*server) []*server {
	out := make([]*server, 0, len(addrs))
	for _, a := range addrs {
		i := slices.IndexFunc(known, func(s *server) bool { return s.addr == a })
		if i >= 0 {
			out = append(out, known[i])
		} else {
			out = append(out, &server{addr: a})
		}
	}
	return out
}

// failed notes a failure; first says whether the server was well before.
func (s *server) failed(now time.Time) (first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	pause := maxPause
	if s.failures < 5 {
		pause = min(firstPause<<s.failures, maxPause)
	}
	s.failures++
	s.until = now.Add(pause)
	return s.failures == 1
}

func (s *server) answered() (recovered bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	recovered = s.failures > 0
	s.failures, s.until = 0, time.Time{}
	return recovered
}

func (s *server) pausedUntil() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.until
}

// preferred is the order to ask in: as configured, but those that failed lately last, the one that may be well again the
// soonest first. They are asked all the same where nobody else answers.
func preferred(servers []*server, now time.Time) []*server {
	type standing struct {
		*server
		until time.Time
	}
	list := make([]standing, 0, len(servers))
	for _, s := range servers {
		until := s.pausedUntil()
		if !until.After(now) {
			until = time.Time{}
		}
		list = append(list, standing{s, until})
	}
	slices.SortStableFunc(list, func(a, b standing) int { return a.until.Compare(b.until) })
	out := make([]*server, 0, len(list))
	for _, s := range list {
		out = append(out, s.server)
	}
	return out
}

// exchange asks servers in turn until one answers. Where all refuse or fail, the answer is the last one's code; where none
// answers at all, an error.
func (f *Forwarder) exchange(ctx context.Context, q Question, k key, servers []*server) (*dns.Msg, *server, error) {
	order := preferred(servers, f.opts.Now())
	spoken := map[*server]bool{}
	var last *dns.Msg
	var from *server
	var failed error
	for i := range maxAttempts {
		s := order[i%len(order)]
		if spoken[s] { // its answer would be the same
			continue
		}
		msg, err := f.attempt(ctx, q, k, s)
		if err != nil {
			if s.failed(f.opts.Now()) {
				f.opts.Log.Warn("upstream server does not answer", "server", s.addr, "error", err)
			}
			failed = fmt.Errorf("%s: %w", s.addr, err)
			if ctx.Err() != nil {
				break
			}
			continue
		}
		if s.answered() {
			f.opts.Log.Info("upstream server answers again", "server", s.addr)
		}
		if msg.Rcode == dns.RcodeSuccess || msg.Rcode == dns.RcodeNameError {
			return msg, s, nil
		}
		spoken[s], last, from = true, msg, s
	}
	if last != nil {
		return last, from, nil
	}
	return nil, nil, failed
}

// attempt asks one server once: over UDP, over TCP where that cuts the answer short, and without EDNS where the server does
// not know it (RFC 6891 section 7).
func (f *Forwarder) attempt(ctx context.Context, q Question, k key, s *server) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, f.opts.Attempt)
	defer cancel()
	query := new(dns.Msg)
	query.SetQuestion(k.name, q.Type) // with a random id
	query.CheckingDisabled = q.Unchecked
	query.SetEdns0(payload, q.DNSSEC)
	msg, err := converse(ctx, "udp", s.addr, query)
	if err == nil && msg.Rcode == dns.RcodeFormatError && msg.IsEdns0() == nil {
		query.Extra, query.Id = nil, dns.Id()
		msg, err = converse(ctx, "udp", s.addr, query)
	}
	if err == nil && msg.Truncated {
		query.Id = dns.Id()
		msg, err = converse(ctx, "tcp", s.addr, query)
	}
	if err == nil && msg.Truncated {
		err = errors.New("the answer is cut short, also over TCP")
	}
	return msg, err
}

// converse sends a query from a socket of its own, and with that from a port that nobody can foresee, and waits for the
// answer that belongs to it.
func converse(ctx context.Context, network string, to netip.AddrPort, query *dns.Msg) (*dns.Msg, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, to.String())
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	c := &dns.Conn{Conn: conn, UDPSize: receives}
	if err := c.WriteMsg(query); err != nil {
		return nil, err
	}
	for {
		msg, err := c.ReadMsg()
		var unreadable *dns.Error
		switch {
		case err == nil && belongs(msg, query):
			return msg, nil
		case err != nil && !errors.As(err, &unreadable):
			return nil, err
		case network == "tcp": // nobody else can write there
			return nil, errors.New("the answer does not fit the question")
		}
		// Over UDP it may be somebody's guess: the true answer may yet come.
	}
}

func belongs(msg, query *dns.Msg) bool {
	if !msg.Response || msg.Id != query.Id || msg.Opcode != dns.OpcodeQuery {
		return false
	}
	if len(msg.Question) == 0 { // only an error may leave it out
		return msg.Rcode == dns.RcodeFormatError || msg.Rcode == dns.RcodeNotImplemented || msg.Rcode == dns.RcodeServerFailure
	}
	a, b := msg.Question[0], query.Question[0]
	return len(msg.Question) == 1 && a.Qtype == b.Qtype && a.Qclass == b.Qclass && strings.EqualFold(a.Name, b.Name)
}
