"""How offline pages look, in light, in dark and on paper, and the little that moves on them."""

# By day, then by night; every page of ours takes these.
COLORS = '''
:root{color-scheme:light dark;--ink:#1d232b;--soft:#566170;--line:#d9dee4;--paper:#fbfbfa;
--card:#fff;--good:#1f7a4d;--bad:#b3372b;--open:#8a5a00;--goodbg:#e3f3ea;--badbg:#fae6e3;
--accent:#2463a0;--shade:rgba(29,35,43,.22)}
@media(prefers-color-scheme:dark){:root{--ink:#e4e7ea;--soft:#a3adb8;--line:#353c45;
--paper:#15181c;--card:#1c2026;--good:#6cc79a;--bad:#ee8d80;--open:#d9a94a;--goodbg:#17332a;
--badbg:#3c2220;--accent:#7db2e6;--shade:rgba(0,0,0,.7)}}
'''
CSS = COLORS + '''
*{box-sizing:border-box}
html{scroll-padding-top:12px}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1100px;margin:0 auto;padding:0 20px 60px;min-width:0}
.gate{padding:12px 16px;font-weight:600;border-bottom:1px solid var(--line)}
.gate div{max-width:1060px;margin:0 auto}
.gate.yes{background:var(--goodbg);color:var(--good)}.gate.no{background:var(--badbg);color:var(--bad)}
h1{font-size:25px;line-height:1.25;margin:26px 0 6px}h2{font-size:19px;margin:0 0 4px}
h3{font-size:15px;margin:22px 0 4px}
section{margin-top:26px;padding-top:14px;border-top:1px solid var(--line)}
main>h2{margin-top:34px;padding-top:12px;border-top:1px solid var(--line)}
p{margin:6px 0 10px;max-width:76ch}.soft,small,figcaption{color:var(--soft)}
.answer{font-size:17px;line-height:1.5;max-width:72ch}
small{font-size:11.5px;display:block;white-space:nowrap}
ul{padding-left:20px;max-width:76ch}
figure{margin:12px 0;padding:14px;background:var(--card);border:1px solid var(--line);
border-radius:8px}
.panels{display:flex;flex-wrap:wrap;align-items:flex-end;gap:14px 22px}
.panels i{flex-basis:100%}
svg{display:block;max-width:100%;height:auto;color:var(--ink)}
figcaption{font-size:12.5px;margin-top:8px;max-width:100ch}
.panels,.scroll{overflow-x:auto;--under:var(--paper);background:
linear-gradient(90deg,var(--under) 30%,transparent) 0/40px 100% no-repeat local,
linear-gradient(270deg,var(--under) 30%,transparent) 100%/40px 100% no-repeat local,
linear-gradient(90deg,var(--shade),transparent) 0/14px 100% no-repeat,
linear-gradient(270deg,var(--shade),transparent) 100%/14px 100% no-repeat}
figure .panels{--under:var(--card)}
.wide:before{content:"more to the right \\2192";position:sticky;left:0;display:block;
font-size:11.5px;color:var(--accent)}
table{border-collapse:collapse;font-size:13.5px;margin:6px 0}
th,td{padding:5px 12px 5px 0;text-align:right;border-bottom:1px solid var(--line);
vertical-align:top;font-variant-numeric:tabular-nums;white-space:nowrap}
th{color:var(--soft);font-weight:600;cursor:pointer}th:first-child,td:first-child{text-align:left}
th.text,td.text{text-align:left;white-space:normal;min-width:110px;max-width:340px}
th[data-d="1"]:after{content:" \\2191"}th[data-d="-1"]:after{content:" \\2193"}
.skip{border-left:3px solid var(--line);padding:4px 12px;color:var(--soft)}
.warn{border-left:3px solid var(--bad);background:var(--badbg);padding:6px 12px;border-radius:4px}
p.warn{max-width:none}.warn p,.warn ul{margin:2px 0;max-width:none}
a{color:var(--accent);text-decoration:none}a:hover{text-decoration:underline}
.good{color:var(--good)}.bad{color:var(--bad)}.open{color:var(--open)}
.claims{width:100%;max-width:940px;table-layout:auto}.claims td,.claims th{text-align:left;
white-space:normal;cursor:auto;padding:6px 14px 6px 0}
.claims .verdict,.claims .effect{white-space:nowrap}.claims .verdict{font-weight:600}
.claims .bar{width:170px}.claims svg{width:160px}
.notes{font-size:13.5px;color:var(--soft);margin:4px 0}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(290px,100%),1fr));gap:14px}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px;
font-size:13.5px;overflow-wrap:anywhere}
.card img{width:112px;height:112px;object-fit:contain;image-rendering:pixelated;margin:0 6px 6px 0;
border:1px solid var(--line);border-radius:4px}
.card .q{font-weight:600;margin:2px 0}.card dl{margin:6px 0 0;display:grid;
grid-template-columns:auto 1fr;gap:2px 10px}.card dt{color:var(--soft)}.card dd{margin:0}
#look .cards{grid-template-columns:repeat(auto-fill,minmax(min(255px,100%),1fr))}
#look img{float:left;width:84px;height:84px;margin-right:10px}#look dl{clear:both;padding-top:4px}
#look dl div{grid-column:1/-1;font-size:12px;line-height:1.35;margin:-2px 0 3px}
details summary{cursor:pointer;color:var(--accent);margin:8px 0}
.facts dl{display:grid;grid-template-columns:max-content 1fr;gap:1px 14px;margin:6px 0}
.facts dt{color:var(--soft)}.facts dd{margin:0}
nav{font-size:13.5px;line-height:1.35;padding:10px 20px}
nav ul{list-style:none;padding:0;margin:2px 0 10px}nav li{padding:2px 0}
nav strong{color:var(--soft);font-weight:600;font-size:12px}
@media(min-width:900px){body.side{display:grid;grid-template-columns:218px minmax(0,1fr)}
body.side main{width:100%;margin:0}
nav{position:sticky;top:0;align-self:start;height:100vh;overflow-y:auto;padding:26px 16px;
border-right:1px solid var(--line)}nav summary{display:none}}
@media(max-width:640px){main{padding:0 12px 40px}figure{padding:10px}
.claims thead{display:none}.claims tr{display:grid;grid-template-columns:1fr auto;
border-bottom:1px solid var(--line);padding:6px 0}
.claims td{border:0;padding:1px 0}.claims .text{grid-column:1/-1}.claims .bar{display:none}}
@media print{:root{color-scheme:light;--ink:#000;--soft:#444;--line:#ccc;--paper:#fff;--card:#fff;
--good:#1f7a4d;--bad:#b3372b;--open:#8a5a00;--goodbg:#fff;--badbg:#fff;--accent:#000}
nav,.wide:before{display:none}body.side{display:block}main{max-width:none;padding:0}
body{font-size:11px}.answer{font-size:13px}
table{font-size:8.5px}.claims{font-size:11px}small{font-size:8px}th,td{padding:2px 6px 2px 0}
.panels,.scroll{overflow:visible;background:none}th,td,small{white-space:normal}
svg{min-width:0!important}.panels svg{max-width:48%}
.card,tr,svg,h2,h3{break-inside:avoid}h2,h3{break-after:avoid}
.cards{grid-template-columns:repeat(3,1fr)}summary{list-style:none}
details::details-content{content-visibility:visible;block-size:auto}}
'''
SCRIPT = '''
document.querySelectorAll('table:not(.claims) th').forEach(function(th){
th.addEventListener('click',function(){
 var table=th.closest('table'),body=table.tBodies[0],column=th.cellIndex;
 var direction=th.dataset.d==='-1'?1:-1;
 table.querySelectorAll('th').forEach(function(o){delete o.dataset.d});th.dataset.d=direction;
 function key(row){var cell=row.cells[column];return 'v' in cell.dataset?cell.dataset.v:
  cell.textContent}
 Array.from(body.rows).sort(function(a,b){var x=key(a),y=key(b);
  if(x===''||y==='')return (x==='')-(y==='');
  var order=isNaN(x)||isNaN(y)?x.localeCompare(y):x-y;return direction*order})
  .forEach(function(row){body.appendChild(row)})})});
function measure(){document.querySelectorAll('.panels,.scroll').forEach(function(box){
 if(box.clientWidth)box.classList.toggle('wide',box.scrollWidth>box.clientWidth+1)})}
function reveal(){var place=document.getElementById(decodeURIComponent(location.hash.slice(1)));
 if(!place)return;place.querySelectorAll(':scope>details').forEach(function(d){d.open=true});
 for(var up=place;up;up=up.parentElement)if(up.tagName==='DETAILS')up.open=true;
 place.scrollIntoView()}
var menu=document.querySelector('nav>details');
if(menu&&innerWidth<900)menu.open=false;
document.addEventListener('toggle',measure,true);addEventListener('resize',measure);measure();
addEventListener('hashchange',reveal);if(location.hash)reveal();
document.querySelectorAll('nav a').forEach(function(a){a.addEventListener('click',function(){
 if(a.hash===location.hash)reveal();if(menu&&innerWidth<900)menu.open=false})});
var folded=[];
addEventListener('beforeprint',function(){folded=document.querySelectorAll('details:not([open])');
 folded.forEach(function(d){d.open=true})});
addEventListener('afterprint',function(){folded.forEach(function(d){d.open=false})});
'''
