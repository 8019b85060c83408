package proxy

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"podwire.dev/services/ingress/internal/route"
)

// endpointKey tells endpoints apart. What is spoken and the timeout are the connection pool's, so they are part of it.
type endpointKey struct {
	at       netip.AddrPort
	protocol route.Protocol
	timeout  time.Duration
}

// endpoint is one address that requests go to, with its connections.
type endpoint struct {
	host      string
	scheme    string
	transport *http.Transport
	busy      atomic.Int64 // requests under way
	// downUntil is when it may be chosen again before others, in Unix nanoseconds, after a connection failed.
	downUntil atomic.Int64
}

// downFor is how long an endpoint that did not answer is chosen last.
const downFor = time.Second

func newEndpoint(key endpointKey, l *Limits) *endpoint {
	dialer := net.Dialer{Timeout: l.ConnectTimeout, KeepAlive: 15 * time.Second}
	var protocols http.Protocols
	e := &endpoint{host: key.at.String(), scheme: "http"}
	e.transport = &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, &dialError{err}
			}
			return &upstream{Conn: c, timeout: l.SendTimeout}, nil
		},
		DisableCompression:     true, // what the endpoint encoded passes as it is
		MaxIdleConns:           l.EndpointIdle,
		MaxIdleConnsPerHost:    l.EndpointIdle,
		IdleConnTimeout:        l.EndpointIdleTimeout,
		ResponseHeaderTimeout:  l.ResponseTimeout,
		ExpectContinueTimeout:  time.Second,
		TLSHandshakeTimeout:    l.ConnectTimeout,
		MaxResponseHeaderBytes: int64(l.ResponseHeaderBytes),
		Protocols:              &protocols,
	}
	if key.timeout > 0 {
		e.transport.ResponseHeaderTimeout = key.timeout
	}
	switch key.protocol {
	case route.HTTP:
		protocols.SetHTTP1(true)
	case route.H2C:
		protocols.SetUnencryptedHTTP2(true)
	case route.HTTPS, route.H2:
		e.scheme = "https"
		protocols.SetHTTP1(key.protocol == route.HTTPS)
		protocols.SetHTTP2(key.protocol == route.H2)
		// Endpoints are addresses, for which nobody has certificates; ingress-nginx does not verify by default either.
		e.transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}
	}
	return e
}

// dialError is a connection that did not come about: nothing was sent.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// upstream bounds each write to an endpoint.
type upstream struct {
	net.Conn
	timeout time.Duration
	moved   time.Time
}

// Write is called by one goroutine of the transport at a time.
func (u *upstream) Write(p []byte) (int, error) {
	if now := time.Now(); now.Sub(u.moved) > u.timeout/8 {
		u.moved = now
		if err := u.SetWriteDeadline(now.Add(u.timeout)); err != nil {
			return 0, err
		}
	}
	return u.Conn.Write(p)
}

// pool are the endpoints of one backend.
type pool struct {
	endpoints []*endpoint
	turn      atomic.Uint64
}

// pick chooses the next in turn, or its neighbour where that has fewer requests under way: even under even load, and away
// from slow ones. Endpoints that were tried already are not chosen, and those that were down only where all are. Nil where
// none is left.
func (p *pool) pick(tried []*endpoint, now time.Time) *endpoint {
	n := uint64(len(p.endpoints))
	if n == 0 {
		return nil
	}
	start := p.turn.Add(1)
	var best, down *endpoint
	seen := 0
	for i := range n {
		e := p.endpoints[(start+i)%n]
		if contains(tried, e) {
			continue
		}
		if e.downUntil.Load() > now.UnixNano() {
			if down == nil {
				down = e
			}
			continue
		}
		if best == nil || e.busy.Load() < best.busy.Load() {
			best = e
		}
		if seen++; seen == 2 {
			break
		}
	}
	if best == nil {
		return down
	}
	return best
}

func contains(list []*endpoint, e *endpoint) bool {
	for _, o := range list {
		if o == e {
			return true
		}
	}
	return false
}
