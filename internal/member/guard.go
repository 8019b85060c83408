package member

import (
	"errors"

	"podwire.dev/internal/fabric"
	"podwire.dev/internal/fabric/wall"
	"podwire.dev/internal/nodestate"
)

// guarded is a fabric behind a wall, which stands before the first packet passes.
type guarded struct {
	*fabric.Fabric
	self string
	wall *wall.Wall
}

// guard puts a wall before the fabric of a service's replica.
func guard(f *fabric.Fabric, self string, port uint16, s Service) *guarded {
	cfg := wall.Config{Link: fabric.DefaultLink, Port: port}
	if port == 0 {
		cfg.Port = fabric.DefaultPort
	}
	for _, p := range s.Ports {
		if p.Protocol == nodestate.TCP {
			cfg.TCP = append(cfg.TCP, p.Port)
		}
	}
	return &guarded{Fabric: f, self: self, wall: wall.New(cfg)}
}

// Apply implements Fabric.
func (g *guarded) Apply(members []nodestate.Member, ranges []nodestate.Range) (fabric.Result, error) {
	var s wall.State
	for _, m := range members {
		if m.Name == g.self {
			s.Own = m.Tunnel
		} else {
			s.Members = append(s.Members, m.Underlay...)
		}
	}
	written, err := g.wall.Apply(s)
	if err != nil {
		return fabric.Result{}, err
	}
	r, err := g.Fabric.Apply(members, ranges)
	if written {
		r.Writes++
	}
	return r, err
}

// Remove implements Fabric.
func (g *guarded) Remove() error { return errors.Join(g.Fabric.Remove(), g.wall.Remove()) }
