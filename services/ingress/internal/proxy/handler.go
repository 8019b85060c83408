package proxy

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"podwire.dev/services/ingress/internal/route"
)

// Codes of the answers that are this package's own; those of package route come beside them.
const (
	codeOverloaded  = "Overloaded"
	codeBadMessage  = "BadMessage"
	codeTooLarge    = "BodyTooLarge"
	codeSlowBody    = "BodyTimeout"
	codeUnreachable = "EndpointUnreachable"
	codeFailed      = "EndpointFailed"
	codeTimeout     = "EndpointTimeout"
	codeLoop        = "Loop"
)

// texts say what a code means to whoever sent the request; what is behind the ingress is none of their business.
var texts = map[string]string{
	string(route.NoRoute):       "no Ingress has a rule for this host and path",
	string(route.AmbiguousPath): "the path has an encoded slash or a backslash, and leads to different places with and without it",
	string(route.NotServed):     "the Ingress of this host and path asks for what is not supported",
	string(route.NoEndpoints):   "the Service behind this host and path has no ready endpoint",
	string(route.Forbidden):     "your address is not allowed here",
	string(route.BadPath):       "the path cannot be used",
	codeOverloaded:              "too many requests are under way",
	codeTooLarge:                "the request's body is larger than is allowed",
	codeSlowBody:                "the request's body stopped coming",
	codeUnreachable:             "no endpoint could be connected to",
	codeFailed:                  "the endpoint broke the connection before it answered",
	codeTimeout:                 "the endpoint did not answer in time",
	codeLoop:                    "the request came back here from its own endpoint",
}

// answer is a response of the ingress itself.
func answer(w http.ResponseWriter, status int, code, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	if text == "" {
		text = texts[code]
	}
	body := fmt.Sprintf("%d %s\n%s: %s\n", status, http.StatusText(status), code, text)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body)) // to a client that left there is nothing to say
}

// ServeHTTP implements http.Handler.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var ofClient int64
	if c, _ := r.Context().Value(connKey{}).(*conn); c != nil {
		ofClient = c.begin()
		defer c.end()
	}
	defer f.requests.Add(-1)
	if f.requests.Add(1) > int64(f.limits.Requests) || ofClient > int64(f.limits.RequestsPerClient) {
		w.Header().Set("Retry-After", "1")
		answer(w, http.StatusServiceUnavailable, codeOverloaded, "")
		return
	}
	c := &call{front: f, state: f.state.Load(), writer: w, scheme: "http"}
	if r.ContentLength != 0 && r.ProtoMajor == 1 {
		defer c.linger(f.limits.BodyTimeout)
	}
	if f.draining.Load() || r.ProtoMajor == 1 && r.Header["Upgrade"] != nil {
		w.Header().Set("Connection", "close") // over HTTP/2: GOAWAY
	}
	if !f.wellFormed(w, r) {
		return
	}
	path, err := route.ParsePath(r.URL.EscapedPath())
	if err != nil {
		w.Header().Set("Connection", "close")
		answer(w, http.StatusBadRequest, string(route.BadPath), err.Error())
		return
	}
	peer := peerOf(r)
	trusted := f.trusts(peer)
	c.query = route.Request{Host: r.Host, Path: path, Query: r.URL.RawQuery, TLS: r.TLS != nil, Client: peer}
	if trusted {
		c.query.Client = f.clientOf(r, peer)
		if proto := r.Header.Get("X-Forwarded-Proto"); proto == "https" {
			c.query.TLS = true
		}
	}
	if c.query.TLS {
		c.scheme = "https"
	}
	c.decision = c.state.Table.Decide(c.query)
	if !f.preflight(w, r, c) {
		return
	}
	defer c.leave()
	f.proxy.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callKey{}, c)))
}

// lingering is how long a client may take to send the rest of a body that nobody waits for.
const lingering = 5 * time.Second

// linger bounds how long net/http reads on after a response, in order to use the connection again.
func (c *call) linger(limit time.Duration) {
	if c.body != nil && c.body.ended() {
		return
	}
	// A deadline that cannot be set is one of a connection that is gone.
	_ = http.NewResponseController(c.writer).SetReadDeadline(time.Now().Add(min(limit, lingering)))
}

// wellFormed refuses what the framing of HTTP/1 does not, or is not asked about.
func (f *Front) wellFormed(w http.ResponseWriter, r *http.Request) bool {
	fields := 0
	for _, values := range r.Header {
		fields += len(values)
	}
	switch {
	case r.Method == http.MethodConnect:
		refuse(w, http.StatusMethodNotAllowed, "CONNECT: this is no forward proxy")
	case !httpguts.ValidHeaderFieldName(r.Method): // a token, as a field's name is
		refuse(w, http.StatusBadRequest, "the method is no token")
	case r.URL.Opaque != "" || r.URL.Path != "" && r.URL.Path[0] != '/':
		refuse(w, http.StatusBadRequest, "the request target must be a path")
	case !isHost(r.Host):
		refuse(w, http.StatusBadRequest, "the host is no name or address")
	case f.cameBack(r):
		answer(w, http.StatusLoopDetected, codeLoop, "")
	case len(r.RequestURI) > f.limits.RequestLineBytes:
		refuse(w, http.StatusRequestURITooLong, fmt.Sprintf("the path is longer than %d bytes", f.limits.RequestLineBytes))
	case fields > f.limits.HeaderFields:
		refuse(w, http.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf("more than %d header fields", f.limits.HeaderFields))
	default:
		return true
	}
	return false
}

// isHost says whether a Host is empty, or a name or an address, with a port or without one. HTTP/2 lets clients send anything
// there, and it gets into redirects and to endpoints.
func isHost(host string) bool {
	if host == "" {
		return true
	}
	name, port := host, ""
	if end := strings.IndexByte(host, ']'); host[0] == '[' && end > 0 {
		name, port = host[1:end], host[end+1:]
		if a, err := netip.ParseAddr(name); err != nil || !a.Is6() || a.Zone() != "" {
			return false
		}
	} else {
		if i := strings.IndexByte(host, ':'); i >= 0 {
			name, port = host[:i], host[i:]
		}
		for i := range len(name) {
			switch c := name[i]; {
			case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '.', c == '_':
			default:
				return false
			}
		}
	}
	digits, found := strings.CutPrefix(port, ":")
	return name != "" && found == (port != "") && len(digits) <= 5 && strings.Trim(digits, "0123456789") == ""
}

// headerLoop tells requests that were here already (RFC 8586). Unlike Via it does not make servers behave differently.
const headerLoop = "Cdn-Loop"

// cameBack says whether this process has sent the request to an endpoint before.
func (f *Front) cameBack(r *http.Request) bool {
	for _, v := range r.Header[headerLoop] {
		if strings.Contains(v, f.passed) {
			return true
		}
	}
	return false
}

// refuse answers a request that is none, and closes the connection, as nobody knows what follows on it.
func refuse(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Connection", "close")
	answer(w, status, codeBadMessage, text)
}

// preflight answers what no endpoint is needed for, and says whether one is.
func (f *Front) preflight(w http.ResponseWriter, r *http.Request, c *call) bool {
	d := &c.decision
	if d.Route != nil && d.Route.Options.CORS != nil && (d.Status == 0 || d.Status == http.StatusServiceUnavailable) {
		if allowOrigin(w, r, d.Route.Options.CORS) {
			return false
		}
	}
	switch {
	case d.Location != "":
		w.Header().Set("Location", d.Location)
		answer(w, d.Status, string(d.Code), d.Location)
		return false
	case d.Status != 0:
		answer(w, d.Status, string(d.Code), "")
		return false
	}
	limit := f.limits.BodyBytes
	if own := d.Route.Options.BodyBytes; own != 0 {
		limit = max(own, 0) // -1: none
	}
	if limit > 0 && r.ContentLength > limit {
		w.Header().Set("Connection", "close")
		answer(w, http.StatusRequestEntityTooLarge, codeTooLarge, "")
		return false
	}
	if r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0 {
		c.body = &replay{
			src: r.Body, control: http.NewResponseController(w), pause: f.limits.BodyTimeout, limit: limit,
			large: r.ContentLength > replayBytes,
		}
	}
	return true
}

// allowOrigin says to browsers what other origins may do. It answers a preflight itself, and says so.
func allowOrigin(w http.ResponseWriter, r *http.Request, cors *route.CORS) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return false
	}
	h := w.Header()
	allowed := cors.Origin(origin)
	if allowed != "*" {
		h.Add("Vary", "Origin")
	}
	if allowed == "" {
		return false
	}
	h.Set("Access-Control-Allow-Origin", allowed)
	if !cors.NoCredentials {
		h.Set("Access-Control-Allow-Credentials", "true")
	}
	if cors.Expose != "" {
		h.Set("Access-Control-Expose-Headers", cors.Expose)
	}
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		return false
	}
	h.Set("Access-Control-Allow-Methods", cors.Methods)
	h.Set("Access-Control-Allow-Headers", cors.Headers)
	h.Set("Access-Control-Max-Age", cors.MaxAge)
	w.WriteHeader(http.StatusNoContent)
	return true
}

// peerOf is the address at the other end of the connection; invalid where there is none.
func peerOf(r *http.Request) netip.Addr {
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return a.Addr().Unmap().WithZone("")
}

func (f *Front) trusts(a netip.Addr) bool {
	for _, p := range f.trusted {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// clientOf is the last address of X-Forwarded-For that no trusted proxy has.
func (f *Front) clientOf(r *http.Request, peer netip.Addr) netip.Addr {
	client := peer
	list := strings.Split(strings.Join(r.Header["X-Forwarded-For"], ","), ",")
	for i := len(list) - 1; i >= 0 && f.trusts(client); i-- {
		a, err := netip.ParseAddr(strings.TrimSpace(list[i]))
		if err != nil {
			break
		}
		client = a.Unmap()
	}
	return client
}

const bufferBytes = 32 << 10

// buffers is a pool of what bodies are copied through.
type buffers struct{ f *Front }

// Get implements httputil.BufferPool.
func (b buffers) Get() []byte { return *b.f.buffers.Get().(*[]byte) }

// Put implements httputil.BufferPool.
func (b buffers) Put(p []byte) { b.f.buffers.Put(&p) }

func (f *Front) reverseProxy(quiet *log.Logger) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite: f.rewrite, Transport: balancer{}, FlushInterval: -1, BufferPool: buffers{f}, ErrorLog: quiet,
		ErrorHandler: failed, ModifyResponse: finish,
	}
}

// ours are the fields that say who the client is. What a client says in them itself is not passed on, whatever way it
// spells them: some servers read an underscore as a hyphen.
var ours = []string{
	"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Prefix", "X-Forwarded-Proto",
	"X-Forwarded-Scheme", "X-Forwarded-Server", "X-Original-Forwarded-For", "X-Original-Uri", "X-Real-Ip", "X-Scheme", "Proxy",
}

// rewrite makes the endpoint's request.
func (f *Front) rewrite(p *httputil.ProxyRequest) {
	c := callOf(p.In.Context())
	out, d := p.Out, &c.decision
	out.URL.RawQuery = d.Query
	if d.Path != p.In.URL.EscapedPath() {
		// Route's paths are well encoded, so that this is what is sent, byte for byte.
		out.URL.Path, _ = url.PathUnescape(d.Path)
		out.URL.RawPath = d.Path
	}
	dropTunnels(out.Header)
	for _, name := range ours {
		delete(out.Header, name)
	}
	for name := range out.Header {
		if strings.IndexByte(name, '_') >= 0 && isOurs(name) {
			delete(out.Header, name)
		}
	}
	f.introduce(out.Header, p.In, c)
	if v := d.Route.Options.VHost; v != "" {
		out.Host = v
	}
	if c.body != nil {
		// Both cannot fail: nothing was read yet.
		c.body.announced = p.In.Trailer
		_ = c.body.into(out)
	} else {
		out.Trailer = nil
	}
}

// dropTunnels takes out an upgrade to what an endpoint would serve past the rules on: another version of HTTP, with
// prior knowledge or not, and TLS. The request is passed on without it (RFC 9110 section 7.8).
func dropTunnels(h http.Header) {
	delete(h, "Http2-Settings")
	for protocol := range strings.SplitSeq(h.Get("Upgrade"), ",") {
		name, _, _ := strings.Cut(strings.ToLower(strings.TrimSpace(protocol)), "/")
		if name == "h2c" || name == "h2" || name == "http" || name == "tls" {
			delete(h, "Upgrade")
			delete(h, "Connection")
			return
		}
	}
}

func isOurs(name string) bool {
	name = strings.ReplaceAll(name, "_", "-")
	for _, o := range ours {
		if strings.EqualFold(o, name) {
			return true
		}
	}
	return false
}

// introduce says who the client is.
func (f *Front) introduce(h http.Header, in *http.Request, c *call) {
	host, port := in.Host, defaultPort(c.scheme)
	if local, ok := in.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		if a, err := netip.ParseAddrPort(local.String()); err == nil {
			port = strconv.Itoa(int(a.Port()))
		}
	}
	peer := peerOf(in)
	forwarded := peer.String()
	if f.trusts(peer) {
		if prior := strings.Join(in.Header["X-Forwarded-For"], ", "); prior != "" {
			forwarded = prior + ", " + forwarded
		}
		host, port = or(in.Header.Get("X-Forwarded-Host"), host), or(in.Header.Get("X-Forwarded-Port"), port)
	}
	h["X-Forwarded-For"] = []string{forwarded}
	h["X-Forwarded-Host"] = []string{host}
	h["X-Forwarded-Port"] = []string{port}
	h["X-Forwarded-Proto"] = []string{c.scheme}
	h["X-Real-Ip"] = []string{c.query.Client.String()}
	h[headerLoop] = append(h[headerLoop], f.passed)
	if p := c.decision.Route.Options.ForwardedPrefix; p != "" {
		h["X-Forwarded-Prefix"] = []string{p}
	}
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func defaultPort(scheme string) string {
	if scheme == "https" {
		return "443"
	}
	return "80"
}

// finish looks at an endpoint's response.
func finish(resp *http.Response) error {
	c := callOf(resp.Request.Context())
	if resp.StatusCode == http.StatusSwitchingProtocols {
		c.writer.Header().Del("Connection") // it goes on, as something else
	}
	if c.decision.Route.Options.CORS != nil {
		for name := range resp.Header {
			if strings.HasPrefix(name, "Access-Control-") {
				delete(resp.Header, name) // the Ingress' word counts, and two would be none to a browser
			}
		}
	}
	return nil
}

// failed answers in the place of an endpoint.
func failed(w http.ResponseWriter, r *http.Request, err error) {
	c := callOf(r.Context())
	var refused *refusedError
	var dial *dialError
	if c.body != nil {
		if theirs := c.body.failure(); theirs != nil {
			err = theirs
			w.Header().Set("Connection", "close")
		}
	}
	switch {
	case errors.Is(err, errTooLarge):
		answer(w, http.StatusRequestEntityTooLarge, codeTooLarge, "")
	case errors.As(err, &refused):
		answer(w, refused.status, codeBadMessage, refused.reason)
	case c.body != nil && c.body.failure() != nil && errors.Is(err, os.ErrDeadlineExceeded):
		answer(w, http.StatusRequestTimeout, codeSlowBody, "")
	case c.body != nil && c.body.failure() != nil:
		answer(w, http.StatusBadRequest, codeBadMessage, "the request's body cannot be read")
	case errors.As(err, &dial), errors.Is(err, errNoEndpoint):
		answer(w, http.StatusBadGateway, codeUnreachable, "")
	case isTimeout(err):
		answer(w, http.StatusGatewayTimeout, codeTimeout, "")
	default:
		answer(w, http.StatusBadGateway, codeFailed, "")
	}
}
