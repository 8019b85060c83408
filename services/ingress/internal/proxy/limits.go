package proxy

import (
	"fmt"
	"time"

	"podwire.dev/internal/errs"
)

// Limits bound what clients and endpoints can take. Sizes are in bytes.
type Limits struct {
	// Connections are open at once; where there are as many, those that wait longest for a request are closed.
	Connections int `yaml:"connections"`
	// ConnectionsPerClient are open at once from one address. Behind externalTrafficPolicy: Cluster a node is one address.
	ConnectionsPerClient int `yaml:"connectionsPerClient"`
	// Requests are under way at once; what exceeds it is answered 503.
	Requests int `yaml:"requests"`
	// RequestsPerClient are under way at once from one address (503), so that none takes the room of all.
	RequestsPerClient int `yaml:"requestsPerClient"`
	// RequestLineBytes bounds the request line (414), HeaderBytes it and all fields (431), HeaderFields their number (431).
	RequestLineBytes int `yaml:"requestLineBytes"`
	HeaderBytes      int `yaml:"headerBytes"`
	HeaderFields     int `yaml:"headerFields"`
	// HeaderTimeout bounds the TLS handshake, and the time from a request's first byte to the end of its header.
	HeaderTimeout time.Duration `yaml:"headerTimeout"`
	// IdleTimeout is how long a connection may wait for its next request.
	IdleTimeout time.Duration `yaml:"idleTimeout"`
	// BodyTimeout bounds each pause within a request's body (408), SendTimeout each write to a client or an endpoint.
	BodyTimeout time.Duration `yaml:"bodyTimeout"`
	SendTimeout time.Duration `yaml:"sendTimeout"`
	// BodyBytes bounds a request's body (413); 0 is no bound. The annotation proxy-body-size wins.
	BodyBytes int64 `yaml:"bodyBytes"`
	// Streams are open at once on one HTTP/2 connection.
	Streams int `yaml:"streams"`
	// ConnectTimeout bounds the connection to an endpoint, ResponseTimeout the time from the end of the request to the
	// response's header (504). The annotation proxy-read-timeout wins.
	ConnectTimeout  time.Duration `yaml:"connectTimeout"`
	ResponseTimeout time.Duration `yaml:"responseTimeout"`
	// ResponseHeaderBytes bounds a response's header (502).
	ResponseHeaderBytes int `yaml:"responseHeaderBytes"`
	// EndpointIdle are kept open to one endpoint, each for EndpointIdleTimeout after its last request.
	EndpointIdle        int           `yaml:"endpointIdle"`
	EndpointIdleTimeout time.Duration `yaml:"endpointIdleTimeout"`
	// Drain is how long a replica that stops goes on accepting, so that those who lead clients here learn of it.
	Drain time.Duration `yaml:"drain"`
}

// DefaultLimits are those of a configuration that names none.
func DefaultLimits() Limits {
	return Limits{
		Connections: 16384, ConnectionsPerClient: 8192, Requests: 8192, RequestsPerClient: 4096,
		RequestLineBytes: 8 << 10, HeaderBytes: 64 << 10, HeaderFields: 128,
		HeaderTimeout: 10 * time.Second, IdleTimeout: 75 * time.Second, BodyTimeout: time.Minute, SendTimeout: time.Minute,
		Streams:        128,
		ConnectTimeout: 2 * time.Second, ResponseTimeout: time.Minute, ResponseHeaderBytes: 64 << 10,
		// Below the 5 s that many servers keep an idle connection, so that it is mostly we who close.
		EndpointIdle: 256, EndpointIdleTimeout: 4 * time.Second,
		Drain: 2 * time.Second,
	}
}

// Check returns what is wrong, as fields below "limits".
func (l *Limits) Check() []errs.Violation {
	var out []errs.Violation
	bad := func(name string, value any, rule string) {
		out = append(out, errs.Violation{Field: "limits." + name, Value: fmt.Sprint(value), Rule: rule})
	}
	for _, n := range []struct {
		name          string
		value, lowest int
	}{
		{"connections", l.Connections, 1},
		{"connectionsPerClient", l.ConnectionsPerClient, 1},
		{"requests", l.Requests, 1},
		{"requestsPerClient", l.RequestsPerClient, 1},
		{"requestLineBytes", l.RequestLineBytes, 256},
		{"headerBytes", l.HeaderBytes, 1024},
		{"headerFields", l.HeaderFields, 8},
		{"streams", l.Streams, 1},
		{"responseHeaderBytes", l.ResponseHeaderBytes, 1024},
		{"endpointIdle", l.EndpointIdle, 1},
	} {
		if n.value < n.lowest {
			bad(n.name, n.value, fmt.Sprintf("must be at least %d", n.lowest))
		}
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"headerTimeout", l.HeaderTimeout},
		{"idleTimeout", l.IdleTimeout},
		{"bodyTimeout", l.BodyTimeout},
		{"sendTimeout", l.SendTimeout},
		{"connectTimeout", l.ConnectTimeout},
		{"responseTimeout", l.ResponseTimeout},
		{"endpointIdleTimeout", l.EndpointIdleTimeout},
	} {
		if d.value <= 0 {
			bad(d.name, d.value, "must be a duration above zero, such as 10s")
		}
	}
	if l.BodyBytes < 0 {
		bad("bodyBytes", l.BodyBytes, "must not be negative; 0 is no bound")
	}
	if l.Drain < 0 || l.Drain > maxDrain {
		bad("drain", l.Drain, "must be between 0s and "+maxDrain.String())
	}
	return out
}

// maxDrain leaves time for the requests under way within the stage of the stop.
const maxDrain = 8 * time.Second
