package proxy

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"podwire.dev/services/ingress/internal/route"
)

// call is one request on its way.
type call struct {
	front    *Front
	state    *state
	query    route.Request
	decision route.Decision
	writer   http.ResponseWriter
	scheme   string // X-Forwarded-Proto
	body     *replay
	current  *endpoint
	tried    []*endpoint
	first    [1]*endpoint // tried's first backing
}

type callKey struct{}

func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

// maxTries bounds how many endpoints are sent the same request; as many again may refuse the connection.
const maxTries = 3

// balancer is the http.RoundTripper of all calls: it chooses endpoints.
type balancer struct{}

// RoundTrip implements http.RoundTripper.
func (balancer) RoundTrip(r *http.Request) (*http.Response, error) {
	c := callOf(r.Context())
	sent, refused := 0, 0
	var last error
	for {
		e := c.choose()
		if e == nil {
			if last == nil {
				last = errNoEndpoint
			}
			return nil, last
		}
		r.URL.Scheme, r.URL.Host = e.scheme, e.host
		resp, err := e.transport.RoundTrip(r)
		if err == nil {
			return resp, nil
		}
		last = err
		var dial *dialError
		switch {
		case r.Context().Err() != nil:
			return nil, err
		case errors.As(err, &dial):
			e.downUntil.Store(time.Now().Add(downFor).UnixNano())
			refused++
		default:
			if sent++; !repeatable(r.Method) || isTimeout(err) {
				return nil, err
			}
		}
		if sent >= maxTries || refused >= 2*maxTries || !c.rewind(r) {
			return nil, err
		}
	}
}

var errNoEndpoint = errors.New("there is no endpoint")

// choose takes the next endpoint: of the newest table, which may know better than the one that the request was judged by.
func (c *call) choose() *endpoint {
	p := c.state.pools[c.decision.Backend]
	if now := c.front.state.Load(); now != c.state {
		was := &c.state.Table.Backends()[c.decision.Backend]
		if d := now.Table.Decide(c.query); d.Status == 0 {
			if is := &now.Table.Backends()[d.Backend]; is.Service == was.Service && is.Port == was.Port {
				p = now.pools[d.Backend]
			}
		}
	}
	e := p.pick(c.tried, time.Now())
	if e == nil {
		return nil
	}
	c.leave()
	e.busy.Add(1)
	c.current = e
	if c.tried == nil {
		c.tried = c.first[:0]
	}
	c.tried = append(c.tried, e)
	return e
}

// leave ends the call's part in an endpoint's load.
func (c *call) leave() {
	if c.current != nil {
		c.current.busy.Add(-1)
		c.current = nil
	}
}

// rewind makes the body ready to be sent again.
func (c *call) rewind(r *http.Request) bool {
	if c.body == nil {
		return true
	}
	return c.body.into(r) == nil
}

// repeatable says whether a method may be sent again after it may have had its effect (RFC 9110 section 9.2.2).
func repeatable(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	return false
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}
