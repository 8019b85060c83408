package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"podwire.dev/internal/errs"
)

// maxConfigBytes bounds a configuration file, in bytes.
const maxConfigBytes = 1 << 20

// Common is the part of the configuration that every service has; each service's
// Config embeds it inline:
//
//	type Config struct {
//		daemon.Common `yaml:",inline"`
//		...
//	}
type Common struct {
	// Listen is the TCP address of the gRPC server with mutual TLS, such as ":7443".
	Listen string `yaml:"listen"`
	// Socket is the path of a unix socket for root of this machine; empty for none.
	Socket string `yaml:"socket"`
	// Identity is the directory with ca.crt, tls.crt and tls.key.
	Identity string `yaml:"identity"`
	// Join says how to get an identity if the directory has none; absent for never.
	Join *Join `yaml:"join"`
	// Etcd is the store; agents have none.
	Etcd Etcd `yaml:"etcd"`
	// Peers maps a service's name to its gRPC target, such as dns:///ipam:7443.
	Peers map[string]string `yaml:"peers"`
	// Advertise is the host:port under which others reach Listen; empty for the host's
	// name, as a container's replicas have it, and the port of Listen: see Reachable.
	Advertise string `yaml:"advertise"`
	// Log is what is logged, to standard error.
	Log Log `yaml:"log"`
}

// Join is how a process gets its first certificate.
type Join struct {
	// Target is the gRPC target of cluster, such as dns:///cluster:7443.
	Target string `yaml:"target"`
	// Token is the join token, or TokenFile the path of a file that holds it.
	Token     string `yaml:"token"`
	TokenFile string `yaml:"tokenFile"`
	// CAFile is the CA certificate that cluster's certificate must be signed by.
	CAFile string `yaml:"caFile"`
}

// Etcd says where the store is.
type Etcd struct {
	// Endpoints are URLs, such as https://etcd:2379.
	Endpoints []string `yaml:"endpoints"`
}

// Log says what is logged.
type Log struct {
	// Level is debug, info, warn or error; info if empty.
	Level string `yaml:"level"`
	// Format is text or json; text if empty.
	Format string `yaml:"format"`
}

// Base gives Main the common part of a service's Config, through embedding.
func (c *Common) Base() *Common { return c }

// Peer is the gRPC target of a service; Invalid if the file does not name it.
func (c *Common) Peer(service string) (string, error) {
	target := c.Peers[service]
	if target == "" {
		return "", errs.InvalidFields("configuration", []errs.Violation{
			{Field: "peers." + service, Rule: "is required: the gRPC target of " + service + ", such as dns:///" + service + ":7443"}})
	}
	return target, nil
}

// Reachable is the host:port under which others reach this process: Advertise, or the
// host's name with the port of Listen. Empty if neither says anything.
func (c *Common) Reachable() string {
	if c.Advertise != "" {
		return c.Advertise
	}
	_, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return ""
	}
	host, err := os.Hostname()
	if err != nil {
		return ""
	}
	return net.JoinHostPort(host, port)
}

// check collects the violations of the common part.
func (c *Common) check() []errs.Violation {
	var out []errs.Violation
	bad := func(field, value, rule string) {
		out = append(out, errs.Violation{Field: field, Value: value, Rule: rule})
	}
	hostPort := func(field, value string) {
		_, port, err := net.SplitHostPort(value)
		if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || (n == 0 && field != "listen") {
			bad(field, value, "must be host:port with a port number, such as :7443 or [2001:db8::1]:7443")
		}
	}
	if c.Listen == "" && c.Socket == "" {
		bad("listen", "", "is required (or socket, or both)")
	}
	if c.Listen != "" {
		hostPort("listen", c.Listen)
		if c.Identity == "" {
			bad("identity", "", "is required: the directory of ca.crt, tls.crt and tls.key")
		}
	}
	if c.Advertise != "" {
		hostPort("advertise", c.Advertise)
	}
	for name, target := range c.Peers {
		if target == "" {
			bad("peers."+name, "", "must not be empty")
		}
	}
	if j := c.Join; j != nil {
		if j.Target == "" {
			bad("join.target", "", "is required: the gRPC target of cluster, such as dns:///cluster:7443")
		}
		if (j.Token == "") == (j.TokenFile == "") {
			bad("join", "", "must have exactly one of token and tokenFile")
		}
		if j.CAFile == "" {
			bad("join.caFile", "", "is required: without the CA's certificate any server could collect the token")
		}
		if c.Identity == "" {
			bad("identity", "", "is required: the directory that join writes to")
		}
	}
	if _, err := c.Log.level(); err != nil {
		bad("log.level", c.Log.Level, "must be debug, info, warn or error")
	}
	if f := c.Log.Format; f != "" && f != "text" && f != "json" {
		bad("log.format", f, "must be text or json")
	}
	return out
}

func (l Log) level() (slog.Level, error) {
	switch l.Level {
	case "debug":
		return slog.LevelDebug, nil
	case "", "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("unknown level %q", l.Level)
}

// Base is a service's configuration: something that embeds Common.
type Base interface{ Base() *Common }

// Defaulter fills in what a file may leave out; called before the file is read.
type Defaulter interface{ SetDefaults() }

// Checker adds a service's own rules; called after the file is read.
type Checker interface{ Check() []errs.Violation }

// Load reads a YAML file into a T. Unknown keys, duplicate keys, more than one document
// and wrong types are refused, all at once and with their line; then every rule of
// Common (if T embeds it) and of T's Check. Errors are Invalid, or NotFound.
func Load[T any](path string) (T, error) {
	var cfg, none T
	if d, ok := any(&cfg).(Defaulter); ok {
		d.SetDefaults()
	}
	data, err := readBounded(path)
	if err != nil {
		return none, err
	}
	if err := decodeStrict(data, &cfg); err != nil {
		return none, errs.Wrap(err, "configuration %s", path)
	}
	var violations []errs.Violation
	if b, ok := any(&cfg).(Base); ok {
		violations = b.Base().check()
	}
	if c, ok := any(&cfg).(Checker); ok {
		violations = append(violations, c.Check()...)
	}
	if err := errs.InvalidFields("configuration "+path, violations); err != nil {
		return none, err
	}
	return cfg, nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, errs.WrapAs(errs.NotFound, err, "configuration")
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "configuration %s", path)
	}
	if len(data) > maxConfigBytes {
		return nil, errs.New(errs.Invalid, "configuration %s: is larger than %d bytes", path, maxConfigBytes)
	}
	return data, nil
}

// decodeStrict decodes exactly one YAML document.
func decodeStrict(data []byte, into any) error {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	err := dec.Decode(into)
	if errors.Is(err, io.EOF) {
		return nil // an empty file: whatever is required is reported by the checks
	}
	if err != nil {
		return yamlError(err)
	}
	var more yaml.Node
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return errs.New(errs.Invalid, "must be one YAML document, not several")
	}
	return nil
}

var (
	unknownKey = regexp.MustCompile(`^line (\d+): field (\S+) not found in type \S+$`)
	yamlLine   = regexp.MustCompile(`^line (\d+): (.*)$`)
)

// yamlError turns the decoder's text, which names Go types, into violations with lines.
func yamlError(err error) error {
	var te *yaml.TypeError
	if !errors.As(err, &te) {
		return errs.New(errs.Invalid, "%s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	var out []errs.Violation
	for _, text := range te.Errors {
		if m := unknownKey.FindStringSubmatch(text); m != nil {
			out = append(out, errs.Violation{Field: "line " + m[1], Value: m[2], Rule: "is not a known key here"})
		} else if m := yamlLine.FindStringSubmatch(text); m != nil {
			out = append(out, errs.Violation{Field: "line " + m[1], Rule: m[2]})
		} else {
			out = append(out, errs.Violation{Rule: text})
		}
	}
	return &errs.Error{Kind: errs.Invalid, Message: "cannot be read:", Violations: out}
}
