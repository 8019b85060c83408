package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"google.golang.org/grpc"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/names"
	"podwire.dev/internal/rpc"
	"podwire.dev/internal/store"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
	"podwire.dev/services/cluster/internal/members"
)

// Register enters members; *members.Keeper is one.
type Register interface {
	Open() members.Stream
	// Enter is false where another replica leads.
	Enter(a members.Attendance, s members.Stream) (elected bool, at store.Revision, err error)
	End(name string, s members.Stream)
}

// Members serves podwire.cluster.v1.MemberService.
type Members struct {
	clusterv1.UnimplementedMemberServiceServer
	election  string
	register  Register
	elections Elections
}

// NewMembers hears members on behalf of the replica that holds the election.
func NewMembers(election string, register Register, elections Elections) *Members {
	return &Members{election: election, register: register, elections: elections}
}

// Attend implements MemberService. Errors: Denied for another service's member, Invalid, Exists for the name of a Pod of
// another origin.
func (m *Members) Attend(stream grpc.BidiStreamingServer[clusterv1.AttendRequest, clusterv1.AttendResponse]) error {
	ctx := stream.Context()
	id := m.register.Open()
	name := ""
	// A stream that ends with this server says nothing of its member, which attends elsewhere in a moment.
	defer func() {
		if cause := context.Cause(ctx); name != "" && (cause == nil || errors.Is(cause, context.Canceled)) {
			m.register.End(name, id)
		}
	}()
	for {
		req, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF), ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		if err := rpc.RequireMember(ctx, req.GetName()); err != nil {
			return err
		}
		if name == "" {
			name = req.GetName()
		}
		if name != req.GetName() {
			return errs.New(errs.Invalid, "member %s: the stream was opened by %s", req.GetName(), name)
		}
		resp, err := m.answer(ctx, req, id)
		if err != nil {
			return err
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

func (m *Members) answer(ctx context.Context, req *clusterv1.AttendRequest, id members.Stream) (*clusterv1.AttendResponse, error) {
	a, err := attendanceOf(rpc.FromContext(ctx).Name, req)
	if err != nil {
		return nil, err
	}
	elected, at, err := m.register.Enter(a, id)
	if err != nil {
		return nil, err
	}
	resp := &clusterv1.AttendResponse{Sequence: req.GetSequence(), PodRevision: int64(at)}
	if elected {
		return resp, nil
	}
	leader, err := m.elections.GetLeader(ctx, m.election)
	if err != nil && !errs.Is(err, errs.NotFound) {
		return nil, errs.Wrap(err, "member %s", req.GetName())
	}
	// Empty while nobody leads: the member keeps asking here.
	resp.LeaderTarget = leader.Address
	return resp, nil
}

// maxPorts bounds the ports of a member.
const maxPorts = 16

func attendanceOf(service string, req *clusterv1.AttendRequest) (members.Attendance, error) {
	a := members.Attendance{Name: req.GetName(), Service: service, Ready: req.GetReady(), Reason: req.GetReason()}
	var bad []errs.Violation
	add := func(field, value, rule string) {
		bad = append(bad, errs.Violation{Field: field, Value: value, Rule: rule})
	}
	a.Underlay = addressList("underlay", req.GetUnderlay(), add)
	if len(req.GetUnderlay()) == 0 {
		add("underlay", "", "is required: an address that nodes reach")
	}
	a.Addresses = addressList("addresses", req.GetAddresses(), add)
	if len(req.GetPorts()) > maxPorts {
		add("ports", fmt.Sprint(len(req.GetPorts())), fmt.Sprintf("must not be more than %d", maxPorts))
		return a, errs.InvalidFields("member "+req.GetName(), bad)
	}
	seen := map[string]bool{}
	for i, p := range req.GetPorts() {
		at := fmt.Sprintf("ports[%d]", i)
		if rule := names.Port(p.GetName()); rule != "" || seen[p.GetName()] {
			add(at+".name", p.GetName(), "must be an IANA service name, and unique")
		}
		seen[p.GetName()] = true
		if p.GetPort() == 0 || p.GetPort() > 65535 {
			add(at+".port", fmt.Sprint(p.GetPort()), "must be between 1 and 65535")
		}
		if p.GetProtocol() != "TCP" && p.GetProtocol() != "UDP" {
			add(at+".protocol", p.GetProtocol(), "must be TCP or UDP")
		}
		a.Ports = append(a.Ports, members.Port{Name: p.GetName(), Port: uint16(p.GetPort()), Protocol: p.GetProtocol()})
	}
	return a, errs.InvalidFields("member "+req.GetName(), bad)
}

// broadcast is IPv4's limited broadcast address.
var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// addressList reads addresses, at most one of each family.
func addressList(field string, texts []string, add func(field, value, rule string)) (out []netip.Addr) {
	families := map[bool]bool{}
	for i, text := range texts {
		addr, err := netip.ParseAddr(text)
		at := fmt.Sprintf("%s[%d]", field, i)
		switch {
		case err != nil || addr.Zone() != "" || addr.Is4In6() || addr.IsUnspecified() || addr.IsLoopback() ||
			addr.IsMulticast() || addr == broadcast:
			add(at, text, "must be an IPv4 or IPv6 address of a host")
		case families[addr.Is4()]:
			add(at, text, "must be the only one of its family")
		default:
			families[addr.Is4()] = true
			out = append(out, addr)
		}
	}
	return out
}
