package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"podwire.dev/internal/resolvconf"
)

const (
	resolvConf = "/etc/resolv.conf"
	dnsPort    = 53
)

// parseServer reads an address with an optional port.
func parseServer(text string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return netip.AddrPortFrom(a, dnsPort), nil
	}
	a, err := netip.ParseAddrPort(text)
	if err != nil {
		return a, fmt.Errorf("--server %q: want an address, or one with a port", text)
	}
	return a, nil
}

// recordTypes are those that resolve can ask for and print.
var recordTypes = map[string]dnsmessage.Type{
	"A": dnsmessage.TypeA, "AAAA": dnsmessage.TypeAAAA, "CNAME": dnsmessage.TypeCNAME, "SRV": dnsmessage.TypeSRV,
	"PTR": dnsmessage.TypePTR, "TXT": dnsmessage.TypeTXT, "NS": dnsmessage.TypeNS, "MX": dnsmessage.TypeMX, "SOA": dnsmessage.TypeSOA,
}

// tryResolve asks as a C library would: search list, ndots, the servers in turn.
func tryResolve(ctx context.Context, o options) result {
	text, err := os.ReadFile(o.conf)
	if err != nil {
		return result{NotTried, "", err.Error()}
	}
	conf := resolvconf.Parse(string(text))
	var servers []netip.AddrPort
	for _, a := range conf.Nameservers {
		servers = append(servers, netip.AddrPortFrom(a, dnsPort))
	}
	if o.server.IsValid() {
		servers = []netip.AddrPort{o.server}
	}
	if len(servers) == 0 {
		return result{NotTried, "", o.conf + " names no server; use --server"}
	}
	name, types := o.target, []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA}
	if a, err := netip.ParseAddr(name); err == nil && (o.kind == "" || o.kind == "PTR") {
		name, types = reverseName(a), []dnsmessage.Type{dnsmessage.TypePTR}
	} else if o.kind != "" {
		t, ok := recordTypes[o.kind]
		if !ok {
			return result{NotTried, "", fmt.Sprintf("type %s is not known; use A, AAAA, CNAME, SRV, PTR, TXT, NS, MX or SOA", o.kind)}
		}
		types = []dnsmessage.Type{t}
	}
	var r, empty result
	for _, candidate := range conf.Candidates(name) {
		r = askAll(ctx, o, servers, candidate, types)
		if r.code != Refused {
			return r
		}
		if strings.HasSuffix(r.note, noData) && empty.note == "" {
			empty = r
		}
	}
	if empty.note != "" { // that one of the names exists says more than that the others do not
		return empty
	}
	return r
}

// noData ends the note of an answer without records: the name exists.
const noData = ": NODATA"

// askAll asks for every type of one name and puts the answers together.
func askAll(ctx context.Context, o options, servers []netip.AddrPort, name string, types []dnsmessage.Type) result {
	all := result{code: Refused}
	for _, t := range types {
		r := askServers(ctx, o, servers, name, t)
		if r.code == Reached {
			all.text = strings.TrimPrefix(all.text+"\n"+r.text, "\n")
			all.code, all.note = Reached, r.note
		} else if all.code != Reached {
			all.code, all.note = r.code, r.note
		}
		if r.code == TimedOut {
			break // the other type would wait as long again
		}
	}
	return all
}

// askServers asks the servers in turn until one gives an answer to keep.
func askServers(ctx context.Context, o options, servers []netip.AddrPort, name string, t dnsmessage.Type) result {
	var r result
	for _, server := range servers {
		msg, err := ask(ctx, o, server, name, t)
		if err != nil {
			r = classify(err)
			r.note = fmt.Sprintf("%s: %s", server.Addr(), r.note)
			continue
		}
		r = read(msg, server, name, t)
		if msg.RCode == dnsmessage.RCodeSuccess || msg.RCode == dnsmessage.RCodeNameError {
			return r
		}
	}
	return r
}

// read puts a DNS answer into words; an empty one is a refusal.
func read(msg dnsmessage.Message, server netip.AddrPort, name string, t dnsmessage.Type) result {
	kind := strings.TrimPrefix(t.String(), "Type")
	if msg.RCode != dnsmessage.RCodeSuccess {
		code := strings.TrimPrefix(msg.RCode.String(), "RCode")
		if msg.RCode == dnsmessage.RCodeNameError {
			code = "NXDOMAIN"
		}
		return result{Refused, "", fmt.Sprintf("%s: %s %s: %s", server.Addr(), name, kind, code)}
	}
	var lines []string
	found := false
	for _, a := range msg.Answers {
		found = found || a.Header.Type == t
		lines = append(lines, fmt.Sprintf("%s %d %s %s", a.Header.Name, a.Header.TTL, strings.TrimPrefix(a.Header.Type.String(), "Type"), recordText(a.Body)))
	}
	if !found { // aliases alone lead to nothing
		return result{Refused, "", fmt.Sprintf("%s: %s %s", server.Addr(), name, kind) + noData}
	}
	return result{Reached, strings.Join(lines, "\n"), "answered by " + server.Addr().String()}
}

func recordText(body dnsmessage.ResourceBody) string {
	switch b := body.(type) {
	case *dnsmessage.AResource:
		return netip.AddrFrom4(b.A).String()
	case *dnsmessage.AAAAResource:
		return netip.AddrFrom16(b.AAAA).String()
	case *dnsmessage.CNAMEResource:
		return b.CNAME.String()
	case *dnsmessage.PTRResource:
		return b.PTR.String()
	case *dnsmessage.NSResource:
		return b.NS.String()
	case *dnsmessage.MXResource:
		return fmt.Sprintf("%d %s", b.Pref, b.MX)
	case *dnsmessage.SRVResource:
		return fmt.Sprintf("%d %d %d %s", b.Priority, b.Weight, b.Port, b.Target)
	case *dnsmessage.TXTResource:
		return fmt.Sprintf("%q", b.TXT)
	case *dnsmessage.SOAResource:
		return fmt.Sprintf("%s %s %d %d %d %d %d", b.NS, b.MBox, b.Serial, b.Refresh, b.Retry, b.Expire, b.MinTTL)
	default:
		return "?"
	}
}

// reverseName is the name under which an address is registered (RFC 1035 3.5, RFC 3596 2.5).
func reverseName(a netip.Addr) string {
	a = a.Unmap()
	var b strings.Builder
	bytes := a.AsSlice()
	for i := len(bytes) - 1; i >= 0; i-- {
		if a.Is4() {
			fmt.Fprintf(&b, "%d.", bytes[i])
		} else {
			fmt.Fprintf(&b, "%x.%x.", bytes[i]&0xf, bytes[i]>>4)
		}
	}
	if a.Is4() {
		return b.String() + "in-addr.arpa."
	}
	return b.String() + "ip6.arpa."
}

// ask sends one question to one server, over UDP and, if the answer was cut, TCP.
func ask(ctx context.Context, o options, server netip.AddrPort, name string, t dnsmessage.Type) (dnsmessage.Message, error) {
	n, err := dnsmessage.NewName(name)
	if err != nil {
		return dnsmessage.Message{}, fmt.Errorf("name %q: %w", name, err)
	}
	query := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: uint16(rand.Uint32()), RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: n, Type: t, Class: dnsmessage.ClassINET}},
	}
	wire, err := query.Pack()
	if err != nil {
		return dnsmessage.Message{}, fmt.Errorf("name %q: %w", name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	deadline := time.Now().Add(o.timeout)
	for _, network := range []string{"udp", "tcp"} {
		conn, err := dial(ctx, o, network, server.String())
		if err != nil {
			return dnsmessage.Message{}, err
		}
		_ = conn.SetDeadline(deadline)
		msg, err := converse(conn, network, wire, query)
		conn.Close()
		if err != nil || !msg.Truncated {
			return msg, err
		}
	}
	return dnsmessage.Message{}, errors.New("answer cut short, also over TCP")
}

// converse sends a query and waits for the answer that belongs to it.
func converse(conn net.Conn, network string, wire []byte, query dnsmessage.Message) (dnsmessage.Message, error) {
	if network == "tcp" {
		wire = append(binary.BigEndian.AppendUint16(nil, uint16(len(wire))), wire...)
	}
	if _, err := conn.Write(wire); err != nil {
		return dnsmessage.Message{}, err
	}
	buf := make([]byte, 1<<16)
	for {
		n, err := readMessage(conn, network, buf)
		if err != nil {
			return dnsmessage.Message{}, err
		}
		var msg dnsmessage.Message
		if msg.Unpack(buf[:n]) == nil && msg.Response && msg.ID == query.ID &&
			len(msg.Questions) == 1 && strings.EqualFold(msg.Questions[0].Name.String(), query.Questions[0].Name.String()) {
			return msg, nil
		}
		if network == "tcp" {
			return dnsmessage.Message{}, errors.New("answer is not DNS")
		}
	}
}

func readMessage(conn net.Conn, network string, buf []byte) (int, error) {
	if network == "udp" {
		return conn.Read(buf)
	}
	if _, err := io.ReadFull(conn, buf[:2]); err != nil {
		return 0, err
	}
	return io.ReadFull(conn, buf[:binary.BigEndian.Uint16(buf)])
}
