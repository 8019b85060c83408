package probe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
)

// webOptions are the options of `probe http`.
type webOptions struct {
	// host is the Host header and the TLS server name; empty for the URL's own.
	host string
	// ca is a file of PEM certificates to trust instead of the system's.
	ca       string
	insecure bool
	headers  bool
	keep     bool
}

// newHTTP makes the attempt of `probe http`; its connections live as long as it does.
func newHTTP(o options) func(context.Context, options) result {
	client, err := webClient(o)
	return func(ctx context.Context, o options) result {
		if err != nil {
			return result{NotTried, "", err.Error()}
		}
		return tryHTTP(ctx, client, o)
	}
}

func webClient(o options) (*http.Client, error) {
	trust := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: o.web.host, InsecureSkipVerify: o.web.insecure} //nolint:gosec // asked for by name
	if o.web.ca != "" {
		pem, err := os.ReadFile(o.web.ca)
		if err != nil {
			return nil, err
		}
		trust.RootCAs = x509.NewCertPool()
		if !trust.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: no certificate in it", o.web.ca)
		}
	}
	transport := &http.Transport{
		DisableKeepAlives: !o.web.keep,
		TLSClientConfig:   trust,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return dial(ctx, o, network, address)
		},
		ForceAttemptHTTP2: true,
	}
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// tryHTTP is one GET. What comes back is an answer, whatever its status.
func tryHTTP(ctx context.Context, client *http.Client, o options) result {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	url := o.target
	if !strings.Contains(url, "://") {
		url = "http://" + url
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return result{NotTried, "", err.Error()}
	}
	req.Host = o.web.host
	resp, err := client.Do(req)
	if err != nil {
		var untrusted *tls.CertificateVerificationError
		if errors.As(err, &untrusted) {
			return result{Refused, "", err.Error()}
		}
		return classify(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	note := resp.Proto + " " + resp.Status
	if err != nil {
		note += ", body cut short: " + err.Error()
	}
	text := strings.TrimRight(string(body), "\r\n")
	if o.web.headers {
		text = head(resp) + text
	}
	return result{Reached, text, note}
}

// head is the status line and the header, sorted, with an empty line after them.
func head(resp *http.Response) string {
	var lines []string
	for name, values := range resp.Header {
		for _, v := range values {
			lines = append(lines, name+": "+v)
		}
	}
	slices.Sort(lines)
	return resp.Proto + " " + resp.Status + "\n" + strings.Join(append(lines, "", ""), "\n")
}
