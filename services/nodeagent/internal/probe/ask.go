package probe

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"podwire.dev/services/nodeagent/internal/runtime/podspec"
)

// userAgent is how a probe of Podwire shows in a server's log.
const userAgent = "podwire-probe/1"

// maxMessage bounds what is kept of an answer, in bytes.
const maxMessage = 1024

// Target is the container that a handler is about.
type Target struct {
	// PodIP is used where the handler names no host.
	PodIP     netip.Addr
	Container podspec.Container
	// Exec runs a command in the container, its output bounded by the callee.
	Exec func(ctx context.Context, argv []string, output io.Writer) (code int, err error)
}

// Ask carries out a handler once, from this process' network namespace: the node's,
// whose traffic to its own Pods is always allowed. A deadline of ctx is a failure.
func Ask(ctx context.Context, h podspec.Handler, t Target) Answer {
	var answer Answer
	switch {
	case h.HTTP != nil:
		answer = askHTTP(ctx, *h.HTTP, t)
	case h.TCP != nil:
		answer = askTCP(ctx, *h.TCP, t)
	case h.GRPC != nil:
		answer = askGRPC(ctx, *h.GRPC, t)
	case len(h.Exec) > 0:
		answer = askExec(ctx, h.Exec, t)
	default:
		answer = Answer{false, "the probe has no action"}
	}
	answer.Message = strings.TrimSpace(strings.ToValidUTF8(answer.Message, "?"))
	if len(answer.Message) > maxMessage {
		answer.Message = strings.ToValidUTF8(answer.Message[:maxMessage], "")
	}
	return answer
}

func failed(err error) Answer { return Answer{false, err.Error()} }

// hostPort is where to connect to for a handler.
func (t Target) hostPort(host, port string) (string, error) {
	n, err := t.Container.PortNumber(port)
	if err != nil {
		return "", err
	}
	if host == "" {
		if !t.PodIP.IsValid() {
			return "", errors.New("the Pod has no address")
		}
		host = t.PodIP.String()
	}
	return net.JoinHostPort(host, strconv.Itoa(int(n))), nil
}

func askTCP(ctx context.Context, a podspec.TCPSocket, t Target) Answer {
	address, err := t.hostPort(a.Host, a.Port)
	if err != nil {
		return failed(err)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return failed(err)
	}
	conn.Close()
	return Answer{true, "connected to " + address}
}

// askHTTP is a GET; 200 to 399 is success. Redirects are followed on the same host
// only, as kubelet does: one to another host says that this one works.
func askHTTP(ctx context.Context, a podspec.HTTPGet, t Target) Answer {
	address, err := t.hostPort(a.Host, a.Port)
	if err != nil {
		return failed(err)
	}
	u, err := url.Parse(a.Path)
	if err != nil {
		return failed(err)
	}
	u.Scheme, u.Host = strings.ToLower(a.Scheme), address
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return failed(err)
	}
	req.Header.Set("User-Agent", userAgent)
	req.Header.Set("Accept", "*/*")
	for _, h := range a.Headers {
		if strings.EqualFold(h.Name, "Host") {
			req.Host = h.Value
		}
	}
	for _, h := range a.Headers {
		req.Header.Del(h.Name)
	}
	for _, h := range a.Headers {
		req.Header.Add(h.Name, h.Value)
	}
	client := &http.Client{
		Transport: &http.Transport{
			DisableKeepAlives: true,
			// Kubernetes: "the kubelet skips the certificate verification".
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // documented behaviour
		},
		CheckRedirect: func(next *http.Request, via []*http.Request) error {
			if next.URL.Hostname() != via[0].URL.Hostname() {
				return http.ErrUseLastResponse
			}
			if len(via) >= 10 {
				return errors.New("stopped after 10 redirects")
			}
			return nil
		},
	}
	resp, err := client.Do(req)
	if err != nil {
		return failed(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 10<<10))
	if err != nil {
		return failed(err)
	}
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return Answer{false, fmt.Sprintf("HTTP probe failed with statuscode: %d", resp.StatusCode)}
	}
	return Answer{true, string(body)}
}

// limitedBuffer keeps the first bytes and takes the rest.
type limitedBuffer struct{ bytes.Buffer }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if room := maxMessage - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func askExec(ctx context.Context, argv []string, t Target) Answer {
	if t.Exec == nil {
		return Answer{false, "exec is not possible here"}
	}
	var output limitedBuffer
	code, err := t.Exec(ctx, argv, &output)
	if ctx.Err() != nil {
		return Answer{false, "command did not end in time"}
	}
	if err != nil {
		return failed(err)
	}
	if code != 0 {
		return Answer{false, fmt.Sprintf("command ended with %d: %s", code, output.String())}
	}
	return Answer{true, output.String()}
}

// askGRPC calls grpc.health.v1.Health/Check (the gRPC health checking protocol). It
// speaks the few bytes of it directly: HTTP/2 without TLS, one length-prefixed
// message each way, the status in the trailers.
func askGRPC(ctx context.Context, a podspec.GRPC, t Target) Answer {
	address, err := t.hostPort("", strconv.Itoa(int(a.Port)))
	if err != nil {
		return failed(err)
	}
	var message []byte
	if a.Service != "" {
		message = protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), a.Service)
	}
	frame := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+"/grpc.health.v1.Health/Check", bytes.NewReader(frame))
	if err != nil {
		return failed(err)
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	req.Header.Set("User-Agent", userAgent)
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return failed(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return failed(err)
	}
	status, text := resp.Trailer.Get("Grpc-Status"), resp.Trailer.Get("Grpc-Message")
	if status == "" { // an answer without a message has it in the header
		status, text = resp.Header.Get("Grpc-Status"), resp.Header.Get("Grpc-Message")
	}
	if status != "0" {
		return Answer{false, fmt.Sprintf("gRPC status %q %s (HTTP %d)", status, text, resp.StatusCode)}
	}
	serving, err := servingStatus(body)
	if err != nil {
		return failed(err)
	}
	if serving != 1 {
		return Answer{false, fmt.Sprintf("service is not SERVING (status %d)", serving)}
	}
	return Answer{true, "SERVING"}
}

// servingStatus reads HealthCheckResponse.status (field 1, enum) from one frame.
func servingStatus(frame []byte) (uint64, error) {
	if len(frame) < 5 || frame[0] != 0 || int(binary.BigEndian.Uint32(frame[1:5])) != len(frame)-5 {
		return 0, errors.New("answer is not one uncompressed gRPC message")
	}
	for b := frame[5:]; len(b) > 0; {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return 0, protowire.ParseError(n)
		}
		b = b[n:]
		if num == 1 && typ == protowire.VarintType {
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return 0, protowire.ParseError(n)
			}
			return v, nil
		}
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return 0, protowire.ParseError(n)
		}
		b = b[n:]
	}
	return 0, nil
}
